"""Captured steps, with recorded operations in place of CUDA graphs: logits are a plain step's, whatever came before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from tests.adapters import save_adapter
from tests.tiny import FAMILIES, save_tiny, tiny_classifier, tiny_model
from tests.worker.recorded_graphs import RecordedGraphs
from tests.worker.searches import Search, logits_of, searches
from tests.worker.test_joint_attention import ANSWERS, CACHE_BYTES, THREE, batch_for, spoil
from tests.worker.test_reward_model import HEAD
from tests.worker.test_scheduler import drain, drawn, sample_job
from tests.worker.test_token_tree import CPU
from w2s_core.pool.messages import Row
from w2s_core.pool.specs import AdapterSpec, ModelSpec, WorkerSpec
from w2s_core.worker import loading
from w2s_core.worker.batch import Batch
from w2s_core.worker.cuda_graphs import StepGraphs, graph_capture
from w2s_core.worker.loading import load_models, make_runner
from w2s_core.worker.model_runner import ModelRunner
from w2s_core.worker.models import WorkerModels
from w2s_core.worker.session_grids import GridShape
from w2s_core.worker.static_step import StepShape, step_shape
from w2s_core.worker.token_tree import TokenTree


@cache
def runners(family: str) -> tuple[ModelRunner, ModelRunner, RecordedGraphs]:
    """Plain, and with captured steps, of the same weights. What examples have captured serves later ones."""
    graphs = RecordedGraphs()
    plain, _ = make_runner(tiny_model(family), CPU, CACHE_BYTES)
    captured, _ = make_runner(tiny_model(family), CPU, CACHE_BYTES, capture=graphs)
    return plain, captured, graphs


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8)
@given(search=searches())
def test_logits_are_those_of_a_plain_step(family: str, search: Search) -> None:
    plain, captured, _ = runners(family)
    found = logits_of(captured, search, before=lambda: spoil(captured, captured.cache.padding_slot))
    torch.testing.assert_close(found, logits_of(plain, search), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_search_of_steps_of_one_shape_is_replayed(family: str) -> None:
    """Fewer sessions, tokens and rows from step to step, within one shape: nothing of the step before is left."""
    graphs = RecordedGraphs()
    plain, _ = make_runner(tiny_model(family), CPU, CACHE_BYTES)
    captured, _ = make_runner(tiny_model(family), CPU, CACHE_BYTES, capture=graphs)
    found: list[list[torch.Tensor]] = []
    for runner in (plain, captured):
        trees = [TokenTree(runner.cache, (*range(i, i + 9),)) for i in range(4)]
        runner.forward(batch_for(trees, [()]))
        steps = []
        for step in range(8):
            answers = [(row, *range(step)) for row in range(4)]
            alive = trees if step < 4 else trees[1:]
            wanted = answers if step < 6 else answers[1:]
            spoil(runner, runner.cache.padding_slot)
            steps.append(runner.forward(batch_for(alive, wanted)))
        found.append(steps)
    assert (graphs.captures, graphs.replays) == (1, 6), "of the third of eight steps"
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-4)


def test_answers_are_those_of_plain_steps() -> None:
    graphs = RecordedGraphs()
    answers = []
    for capture in (None, graphs):
        subject = WorkerModels({"m": make_runner(tiny_model(), CPU, 1 << 22, capture=capture)})
        for number in range(1, 5):
            subject.handle(sample_job(number, [Row((), number, 30)] * 4, tuple(range(number, 12))))
        outcomes = drain(subject)
        answers.append([drawn(outcomes, number, 4) for number in range(1, 5)])
    assert answers[0] == answers[1]
    assert graphs.replays > 20


def test_rewards_are_those_of_plain_steps() -> None:
    graphs = RecordedGraphs()
    plain, _ = make_runner(tiny_classifier(), CPU, CACHE_BYTES, reward=HEAD)
    captured, _ = make_runner(tiny_classifier(), CPU, CACHE_BYTES, reward=HEAD, capture=graphs)
    trees = {runner: [TokenTree(runner.cache, prompt) for prompt in THREE] for runner in (plain, captured)}
    for step in range(5):
        one, other = (runner.forward(batch_for(own, [(step,), (step, 5)])) for runner, own in trees.items())
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
    assert graphs.replays


def inputs_shape(runner: ModelRunner, batch: Batch) -> StepShape | None:
    return step_shape(batch.prepare_inputs(runner.cache, CPU))


def test_shapes_are_powers_of_two() -> None:
    runner, _ = make_runner(tiny_model(), CPU, CACHE_BYTES)
    trees = [TokenTree(runner.cache, prompt) for prompt in THREE]
    runner.forward(batch_for(trees, [()]))
    assert inputs_shape(runner, batch_for(trees, [(1,), (2,), (3,)])) == StepShape(16, GridShape(4, 4, 256))
    assert inputs_shape(runner, batch_for(trees[:1], [(4,)])) == StepShape(1, GridShape(1, 1, 256))
    long = TokenTree(runner.cache, tuple(range(250)))
    runner.forward(batch_for([long], [()]))
    assert inputs_shape(runner, batch_for([long], [(row,) for row in range(8)])) == StepShape(8, GridShape(1, 8, 512))


def test_prefill_and_large_steps_have_no_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, _ = make_runner(tiny_model(), CPU, CACHE_BYTES)
    tree = TokenTree(runner.cache, tuple(range(20)))
    assert inputs_shape(runner, batch_for([tree], [()])) is None, "logits after one of twenty tokens"
    assert inputs_shape(runner, batch_for([tree], [(row,) for row in range(256)])) is not None
    assert inputs_shape(runner, batch_for([tree], [(row, 1) for row in range(257)])) is None
    monkeypatch.setattr("w2s_core.worker.session_grids._MOST_PAIRS", 4 * 512 - 1)
    assert inputs_shape(runner, batch_for([tree], [(row, 2) for row in range(4)])) is None


def test_logits_are_not_overwritten_by_the_next_step() -> None:
    runner, _ = make_runner(tiny_model(), CPU, CACHE_BYTES, capture=(graphs := RecordedGraphs()))
    trees = [TokenTree(runner.cache, prompt) for prompt in THREE]
    for _ in range(4):  # the first has prompts in it
        kept = runner.forward(batch_for(trees, ANSWERS))
    before = kept.clone()
    runner.forward(batch_for(trees, [(*answer, 1) for answer in ANSWERS]))
    assert graphs.replays == 2
    torch.testing.assert_close(kept, before)


class Reading(torch.nn.Module):
    """A layer that looks at a value, for which a GPU would have to be waited for."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.layer(inputs) if inputs.sum().item() else inputs


def test_a_failed_capture_is_the_last_and_breaks_no_step(caplog: pytest.LogCaptureFixture) -> None:
    plain, _ = make_runner(tiny_model(), CPU, CACHE_BYTES)
    model = tiny_model()
    model.model.layers[1].mlp = Reading(model.model.layers[1].mlp)
    runner, _ = make_runner(model, CPU, CACHE_BYTES, capture=(graphs := RecordedGraphs()), name="large_models.big")
    trees = {own: [TokenTree(own.cache, prompt) for prompt in THREE] for own in (plain, runner)}
    for step in range(5):
        one, other = (own.forward(batch_for(trees[own], [(step,), (step, 5)])) for own in (plain, runner))
        torch.testing.assert_close(other, one)
    assert (graphs.captures, graphs.replays) == (1, 0)
    assert caplog.messages == [
        "large_models.big runs without CUDA graphs: its step could not be captured: RuntimeError: operation not "
        "permitted when stream is capturing"
    ]


def test_the_least_used_graph_is_dropped() -> None:
    runner, _ = make_runner(tiny_model(), CPU, CACHE_BYTES)
    graphs = RecordedGraphs()
    runner.graphs = StepGraphs(graphs, runner.cache, CPU, "m", most=2)
    tree = TokenTree(runner.cache, (1, 2, 3))

    def step(rows: int, times: int = 3) -> int:
        for _ in range(times):
            runner.forward(batch_for([tree], [(row, 3) for row in range(rows)]))
        return graphs.captures

    runner.forward(batch_for([tree], [(row,) for row in range(4)]))
    assert [step(1), step(2), step(1, 1)] == [1, 2, 2]
    assert step(4) == 3, "in place of 2 rows"
    assert step(1, 1) == 3
    assert [step(2, 2), step(2, 1)] == [3, 4], "only when it has come again"


@pytest.mark.parametrize(
    ("devices", "adapted", "reason"),
    [
        (["cuda:0"], True, "it or its base has an adapter"),
        (["cuda:0", "cuda:1"], False, "it is on several devices"),
        (["cpu"], False, "it is on cpu"),
    ],
)
def test_a_model_that_cannot_is_named_in_the_log(
    devices: list[str], adapted: bool, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert graph_capture("pairs.p.tuned", list(map(torch.device, devices)), adapted=adapted) is None
    assert caplog.messages == [f"pairs.p.tuned runs without CUDA graphs: {reason}"]


def test_a_worker_captures_the_steps_of_models_without_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base of an adapter is told before each forward which rows are whose, also where it is served itself."""
    made: dict[str, RecordedGraphs] = {}

    def capture(name: str, devices: Sequence[torch.device], *, adapted: bool) -> RecordedGraphs | None:
        assert devices == [CPU]
        return None if adapted else made.setdefault(name, RecordedGraphs())

    monkeypatch.setattr(loading, "graph_capture", capture)
    base, other = save_tiny(tmp_path / "base"), save_tiny(tmp_path / "other", seed=1)
    adapter = AdapterSpec("pairs.p.tuned", str(save_adapter(tmp_path / "adapter", base)))
    specs = {
        "base": ModelSpec(str(base), False, key="large_models.base"),
        "adapted": ModelSpec(str(base), False, adapter=adapter, key="pairs.p.tuned"),
        "other": ModelSpec(str(other), False, key="large_models.other"),
    }
    for graphs in (False, True):
        loaded = load_models(WorkerSpec("cpu", "float32", 1, CACHE_BYTES, specs, cuda_graphs=graphs))
        assert list(made) == ["large_models.other"] * graphs
    trees = [TokenTree(loaded["other"][0].cache, prompt) for prompt in THREE]
    for step in range(4):
        loaded["other"][0].forward(batch_for(trees, [(step,)]))
    assert made["large_models.other"].captures == 1
