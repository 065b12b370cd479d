"""SECURITY.md names tests that exist, run in the ordinary suite, and stand behind every line of its table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text()
NODE = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ")][1:]


def is_ordinary(test: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    marks = " ".join(ast.unparse(decorator) for decorator in test.decorator_list)
    return not re.search(r"mark\.(slow|vllm|skip)\b", marks)


@pytest.mark.parametrize(("file", "name"), sorted(set(NODE.findall(TEXT))))
def test_a_named_test_is_one_that_runs(file: str, name: str) -> None:
    body = ast.parse((ROOT / file).read_text()).body
    found = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name]
    assert len(found) == 1
    assert is_ordinary(found[0])


def test_every_threat_has_its_proof() -> None:
    assert len(ROWS) > 20
    for row in ROWS:
        _, threat, holds, proof, _ = row.split("|")
        assert threat.strip()
        assert holds.strip()
        named = [part.strip() for part in proof.split(",")]
        assert all(NODE.fullmatch(part) for part in named), row
