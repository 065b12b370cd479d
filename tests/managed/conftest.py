"""The fake vLLM on PATH, and the proof that no process of it is left after a test."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.managed.fake_vllm import install
from tests.replica import eventually


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model's folder, with the program `vllm` first on PATH."""
    programs, folder = tmp_path / "bin", tmp_path / "model"
    programs.mkdir()
    folder.mkdir()
    install(programs)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    yield folder
    eventually(lambda: not processes_of(folder))


def processes_of(folder: Path) -> list[psutil.Process]:
    """Guards, vLLMs and engines that serve the model in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            variables, line = process.environ(), process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if str(folder) in line or variables.get("FAKE_VLLM_MODEL") == str(folder):
            found.append(process)
    return found


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that run; one that has ended may wait to be reaped by whoever adopted it."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def vllm_of(folder: Path) -> psutil.Process:
    """The process `vllm serve`, neither its guard nor its engine."""
    [vllm] = [p for p in processes_of(folder) if any(arg.endswith("/vllm") for arg in p.cmdline()[:2])]
    return vllm
