"""Layering beyond what `lint-imports` reads from the source: what a process loads, and how large things may be.

The contracts about imports between packages are in pyproject.toml, under `tool.importlinter`.
"""

from __future__ import annotations

import ast
import json
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("server", "w2s_core", "benchmarks", "deploy")
WITH_TORCH = {"worker", "demo", "evaluation", "training", "recipes"}  # packages of w2s_core
MOST_MODULES = {"w2s_core": 8, "server": 6}  # besides the packages
MOST_LINES = 300
MOST_FUNCTION_LINES = 40
# Imports every module and prints those after which torch or transformers was there for the first time.
IMPORT_ALL = """
import importlib, json, sys
loaded = {}
for name in json.load(sys.stdin):
    importlib.import_module(name)
    for library in ("torch", "transformers"):
        if library in sys.modules:
            loaded.setdefault(library, name)
json.dump(loaded, sys.stdout)
"""


def subpackages() -> list[str]:
    return sorted(path.parent.name for path in (ROOT / "w2s_core").glob("*/__init__.py"))


def modules(package: str) -> Iterator[str]:
    """The full names of the package's modules, its own included."""
    yield package
    folder = ROOT / package.replace(".", "/")
    yield from (module.name for module in pkgutil.walk_packages([str(folder)], f"{package}."))


def sources() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def loaded_by(names: list[str]) -> dict[str, str]:
    """torch and transformers, where a process that imports `names` in turn loads them, with the module that did."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        input=json.dumps(names),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_importing_a_package_loads_torch_in_the_worker_only() -> None:
    names = [f"w2s_core.{module.stem}" for module in (ROOT / "w2s_core").glob("*.py") if module.stem != "__init__"]
    names += [name for package in subpackages() if package not in WITH_TORCH for name in modules(f"w2s_core.{package}")]
    assert "w2s_core.engine.engine" in names
    assert "torch" not in loaded_by(names)
    assert loaded_by(["w2s_core.worker.main"])["torch"] == "w2s_core.worker.main", "the look does find it"


@pytest.mark.parametrize("package", ["server", "deploy"])
def test_importing_the_server_loads_neither_torch_nor_transformers(package: str) -> None:
    assert not loaded_by(list(modules(package)))


def test_the_contracts_name_every_package() -> None:
    """A new package is under them from its first day."""
    listed: dict[str, Any] = {
        contract["id"]: contract
        for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    }
    every = {f"w2s_core.{package}" for package in subpackages()}
    assert every - set(listed["torch"]["source_modules"]) == {f"w2s_core.{package}" for package in WITH_TORCH}
    assert every == set(listed["base"]["forbidden_modules"])
    assert every - set(listed["search"]["forbidden_modules"]) == {"w2s_core.search"}


@pytest.mark.parametrize("package", MOST_MODULES)
def test_few_modules_lie_outside_the_packages(package: str) -> None:
    loose = [path.name for path in (ROOT / package).glob("*.py") if path.name != "__init__.py"]
    assert len(loose) <= MOST_MODULES[package], loose


def test_the_search_is_short() -> None:
    source = (ROOT / "w2s_core/search/cbs.py").read_text(encoding="utf-8")
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert names <= {"__future__", "collections", "dataclasses", "heapq", "w2s_core"}, "no I/O, no logging"
    assert len(source.splitlines()) < 80


def test_no_file_is_long() -> None:
    assert not {name: lines for name, source in sources() if (lines := len(source.splitlines())) > MOST_LINES}


def test_no_function_is_long() -> None:
    long = {
        f"{name}:{node.lineno} {node.name}": lines
        for name, source in sources()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MOST_FUNCTION_LINES
    }
    assert not long
