"""The GPU report on tiny models and the CPU, with recorded operations in place of CUDA graphs. No time is judged."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu, gpu_steps
from benchmarks.gpu import Sizes, report
from benchmarks.settings import Settings
from tests.tiny import save_tiny, tiny_model
from tests.worker.recorded_graphs import RecordedGraphs
from w2s_core.worker.loading import make_runner

ROOT = Path(__file__).parent.parent.parent


def test_a_step_is_timed_in_every_kind() -> None:
    runner, _ = make_runner(tiny_model(), torch.device("cpu"), 10**7)
    found = list(gpu_steps.measure(runner, RecordedGraphs(), rows=(4, 6), sessions=(1, 2, 4), repeats=2))
    assert [row[:2] for row in found] == [("4", "1"), ("4", "2"), ("4", "4"), ("6", "1"), ("6", "2")]
    for row in found:
        assert len(row) == len(gpu_steps.HEAD)
        assert all(re.fullmatch(r"\d+\.\d\d \(\d+\.\d\d\)", cell) for cell in row[3:])
    assert runner.cache.slots_used == 0
    assert (runner.joint, runner.graphs) == (False, None)


def test_a_step_that_is_not_captured_has_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, _ = make_runner(tiny_model(), torch.device("cpu"), 10**7)
    [without] = gpu_steps.measure(runner, None, rows=(4,), sessions=(2,), repeats=1)
    monkeypatch.setattr("w2s_core.worker.session_grids._MOST_PAIRS", 4)
    [too_large] = gpu_steps.measure(runner, RecordedGraphs(), rows=(4,), sessions=(2,), repeats=1)
    assert without[-1] == too_large[-1] == "–"
    assert "–" not in without[:-1]


def test_the_report_has_requests_and_steps(tmp_path: Path) -> None:
    large, tuned, untuned = (
        str(save_tiny(tmp_path / name, seed=seed, pairs=name != "large", context_length=2048))
        for seed, name in enumerate(("large", "tuned", "untuned"))
    )
    settings = Settings(threads=1, repeats=1, large=large, tuned=tuned, untuned=untuned)
    sizes = Sizes(rows=(4,), sessions=(2,), streams=(1, 2), repeats=1, tokens=6)
    speeds, steps = report(settings, [large], sizes, RecordedGraphs())
    for graphs in ("off", "on"):
        assert len(re.findall(rf"^\| .* \| {graphs} +\| \d", speeds, re.MULTILINE)) == 3
    assert "vLLM is not at hand" in speeds
    assert re.search(r"^\| 4 +\| 2 +\| \d", steps, re.MULTILINE)
    assert re.search(r"torch \d", gpu.head("cpu", "float32"))


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(gpu.main, ["--out", str(tmp_path / "report.md")])
    assert result.exit_code == 2
    assert result.stderr == f"benchmarks.gpu: torch {torch.__version__} finds no CUDA device here\n"
    assert not list(tmp_path.iterdir())


def test_make_installs_nothing_where_there_is_no_gpu(tmp_path: Path) -> None:
    command = ["make", "--no-print-directory", "gpu", "NVIDIA_SMI=false", f"VENV={tmp_path / 'venv'}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert (result.stdout, result.stderr.splitlines()[0]) == ("", "make gpu: there is no NVIDIA GPU here, says false")
    assert not list(tmp_path.iterdir())
