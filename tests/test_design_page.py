"""docs/design.md describes every module by its docstring's first sentence, and names nothing that does not exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/design.md").read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of every table in the text, without the marks of code."""
    return [
        [cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        for line in text.splitlines()
        if "|" in line
    ]


def symbols(path: Path) -> set[str]:
    """Classes and functions, and methods as `Class.method`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{method.name}" for method in methods}
    return found


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line and without its full stop."""
    paragraph = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    return re.split(r"(?<=\.) (?=[A-Z`])", " ".join(paragraph.split()))[0].removesuffix(".")


def test_every_module_is_described_once_by_its_docstring() -> None:
    described = sorted((row[0], row[1].strip("`")) for row in rows(PAGE) if row[0].endswith(".py"))
    modules = [path for top in ("server", "w2s_core") for path in (ROOT / top).rglob("*.py")]
    assert described == sorted(
        (str(path.relative_to(ROOT)), first_sentence(path).replace("|", r"\|").strip("`"))
        for path in modules
        if path.name != "__init__.py"
    )


def test_what_is_looked_for_is_there() -> None:
    [section] = re.findall(r"^## Where is.*?(?=^## )", PAGE, re.DOTALL | re.MULTILINE)
    questions = [row for row in rows(section) if row[1].endswith(".py")]
    assert len(questions) >= 16
    missing = [f"{path}: {symbol}" for _, path, symbol in questions if symbol not in symbols(ROOT / path)]
    assert not missing


def test_every_other_path_exists() -> None:
    paths = re.findall(r"`((?:server|w2s_core|tests|benchmarks|deploy|docs)/[\w./]+)`", PAGE)
    assert [path for path in paths if not (ROOT / path).exists()] == []
