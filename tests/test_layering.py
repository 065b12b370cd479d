"""A line of code knows its room: who imports what, read from the source and seen at run time."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_USE_TORCH = ("w2s_core/worker/", "w2s_core/demo/", "w2s_core/evaluation/")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def files(*folders: str) -> list[tuple[str, list[str]]]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [(str(path.relative_to(ROOT)), list(imports(path))) for path in paths]


def test_torch_stays_in_its_rooms() -> None:
    offenders = [
        name
        for name, modules in files("server", "w2s_core")
        if any(module.split(".")[0] == "torch" for module in modules) and not name.startswith(MAY_USE_TORCH)
    ]
    assert not offenders


def test_the_core_knows_nothing_of_the_server_nor_of_http() -> None:
    forbidden = {"server", "fastapi", "starlette", "uvicorn"}
    assert not [n for n, modules in files("w2s_core") if forbidden & {m.split(".")[0] for m in modules}]


def test_the_search_is_pure_and_short() -> None:
    path = ROOT / "w2s_core/search/cbs.py"
    assert {m.split(".")[0] for m in imports(path)} <= {"__future__", "collections", "dataclasses", "heapq", "w2s_core"}
    assert len(path.read_text().splitlines()) < 80


def test_metrics_are_counted_in_one_place() -> None:
    assert not [
        n for n, ms in files("server", "w2s_core") if "prometheus_client" in ms and n != "w2s_core/telemetry/metrics.py"
    ]


@pytest.mark.parametrize("module", ["w2s_core.build.engine", "server.app", "server.cli"])
def test_the_servers_process_never_loads_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
