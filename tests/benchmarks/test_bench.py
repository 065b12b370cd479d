"""The whole benchmark on tiny models: every system starts, answers and stops. No time is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import bench, step_floor
from benchmarks.bare_client import call
from benchmarks.bench import Trials
from benchmarks.cases import Case, cases
from benchmarks.figures import Trial
from benchmarks.prompts import excerpt
from benchmarks.settings import DEMO, LARGE, Settings, Workload, prepare
from benchmarks.systems import VLLM_SYSTEMS, requests_of
from benchmarks.vllm_process import MODEL
from tests.tiny import save_tiny
from w2s_core.large.dialects import TokenIdSession
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Hypothesis
from w2s_core.worker.int8 import can_multiply


def step_floor_here(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    """Runs `python -m benchmarks.step_floor` in this process, which has imported torch."""
    assert command[:3] == [sys.executable, "-m", "benchmarks.step_floor"]
    done = CliRunner().invoke(step_floor.main, command[3:], catch_exceptions=False)
    return subprocess.CompletedProcess(command, done.exit_code, done.stdout)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Tiny models, few tokens."""
    root = tmp_path_factory.mktemp("bench")
    large, tuned, untuned = (
        str(save_tiny(root / name, seed=seed, pairs=name != "large", context_length=2048))
        for seed, name in enumerate(("large", "tuned", "untuned"))
    )
    return Settings(threads=1, repeats=2, shrink=16, large=large, tuned=tuned, untuned=untuned)


def test_every_side_is_measured_and_written(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "subprocess", SimpleNamespace(run=step_floor_here, PIPE=subprocess.PIPE))
    figures = bench.run(settings, [], tmp_path)
    assert [figure.name for figure in figures] == [case.name for case in cases(settings)]
    unmeasured = [figure for figure in figures if figure.value is None]
    assert {figure.note for figure in unmeasured} == {"not at hand"}
    int8 = [] if can_multiply(torch.device("cpu")) else ["int8-445", "int8-2230", "int8-four", "int8-plain"]
    assert [figure.name for figure in unmeasured] == [*int8, "int8-vllm", "vllm", "remote-445", "remote-2230"]
    assert not [figure.note for figure in figures if "ended" in figure.note]
    content = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    for system in content["trials"]:
        load = system["load"]
        tokens = load["tokens"] * load["streams"]
        whole_chunks = pytest.approx(tokens, abs=load["length"] * load["streams"])
        assert [trial["tokens"] for trial in system["trials"]] == [whole_chunks] * 2
    assert content["machine"]["cores"]
    printed = capsys.readouterr().out
    assert (tmp_path / "bench.md").read_text(encoding="utf-8").strip() in printed
    assert "gathering the cache" in printed
    assert "step ÷ layers" in printed


def test_only_what_is_wanted_is_measured(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Case] = []

    async def measure(_: Settings, selected: Sequence[Case]) -> Trials:
        asked.extend(selected)
        return {run: [Trial(tokens=1.0, seconds=1.0)] for case in selected for run in case.runs}

    monkeypatch.setattr(bench, "measure", measure)
    [figure] = bench.run(settings, ["scoring-flat"], tmp_path)
    assert [case.name for case in asked] == ["scoring-flat"]
    assert figure.value is not None


@pytest.mark.parametrize("vnni", [True, False])
def test_int8_is_left_out_where_no_worker_would_start_with_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, vnni: bool
) -> None:
    monkeypatch.setattr(bench, "can_multiply", lambda _: vnni)
    assert ("int8" in bench.missing_systems(settings)) == (not vnni)
    assert bench.missing_systems(replace(settings, vllm="vllm")) == bench.missing_systems(settings) - VLLM_SYSTEMS


def test_the_large_model_has_no_end_and_the_equal_pair_is_copied(settings: Settings, tmp_path: Path) -> None:
    models = prepare(settings, tmp_path, equal=True)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / LARGE / name).read_text())["eos_token_id"] is None
    tuned, untuned, _ = models.pairs["equal"]
    weights = [Path(folder) / "model.safetensors" for folder in (tuned, untuned)]
    assert not any(path.is_symlink() for path in weights)
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_bare_script_makes_the_searchs_calls(settings: Settings) -> None:
    prompt, tokenizer = (5, 6, 7), HFTokenizer(settings.large)
    [request] = requests_of(Workload(3, 64, DEMO), [prompt], seed=9)
    asked = TokenIdSession("far", tokenizer, prompt, request.sampling).request_body(Hypothesis(tokens=(8,)), 5)
    assert call((*prompt, 8), 4, 5, seed=1) == {**asked, "model": MODEL, "n": 4, "seed": 1}


def test_excerpts_differ_from_the_first_token_on(settings: Settings) -> None:
    tokenizer = HFTokenizer(settings.large)
    for size in (20, 512):
        prompts = [excerpt(tokenizer, size, number) for number in range(8)]
        assert {len(prompt) for prompt in prompts} == {size}
        assert len({prompt[:16] for prompt in prompts}) == 8
