"""Joint attention: one call for many sessions gives what a call for each gives, and what transformers gives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from tests.tiny import FAMILIES, tiny_model
from tests.worker.searches import Search, logits_of, searches
from tests.worker.test_model_group import adapters, shared_runners
from tests.worker.test_token_tree import CPU, uncached
from w2s_core.pool.specs import ModelInfo, ModelSpec, WorkerSpec
from w2s_core.types import Tokens
from w2s_core.worker import attention, session_grids
from w2s_core.worker.batch import Batch
from w2s_core.worker.joint_attention import SessionGrid
from w2s_core.worker.loading import load_models, make_runner
from w2s_core.worker.model_runner import ModelRunner, forward_together
from w2s_core.worker.token_tree import TokenTree

CACHE_BYTES = 1 << 19
THREE = tuple((i, i + 1, i + 2) for i in range(3))  # prompts
ANSWERS = ((), (4,), (4, 5), (9, 8, 7))
reference = cache(tiny_model)


@cache
def runners(family: str) -> tuple[ModelRunner, ModelRunner]:
    """By session and jointly, of the same weights. Their pools keep what earlier examples left."""
    by_session, _ = make_runner(tiny_model(family), CPU, CACHE_BYTES)
    jointly, _ = make_runner(tiny_model(family), CPU, CACHE_BYTES)
    jointly.joint = True
    return by_session, jointly


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=6)
@given(search=searches())
def test_logits_are_those_by_session_and_uncached(family: str, search: Search) -> None:
    by_session, jointly = (logits_of(runner, search) for runner in runners(family))
    torch.testing.assert_close(jointly, by_session, atol=1e-4, rtol=1e-4)
    texts = [p + y for beams in search.answers() for p, ys in zip(search.prompts, beams, strict=True) for y in ys]
    for text, found in list(zip(texts, jointly, strict=True))[-3:]:
        torch.testing.assert_close(found, uncached(reference(family), text), atol=1e-4, rtol=1e-4)


def batch_of(runner: ModelRunner, prompts: Sequence[Tokens], answers: Sequence[Tokens] = ANSWERS) -> Batch:
    return batch_for([TokenTree(runner.cache, prompt) for prompt in prompts], answers)


def batch_for(trees: Sequence[TokenTree], answers: Sequence[Tokens]) -> Batch:
    batch = Batch(1000)
    for tree in trees:
        for answer in answers:
            batch.request_logits(tree, tree.insert(answer))
    return batch


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the queries of every attention call."""
    shapes: list[tuple[int, ...]] = []
    plain = attention.scaled_dot_product_attention

    def counted(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shapes.append(tuple(query.shape))
        return plain(query, *args, **kwargs)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", counted)
    return shapes


def joint_runner(family: str = "llama") -> tuple[ModelRunner, ModelInfo]:
    runner, info = make_runner(tiny_model(family), CPU, CACHE_BYTES)
    runner.joint = True
    return runner, info


def test_sessions_share_a_call_in_each_layer(calls: list[tuple[int, ...]]) -> None:
    runner, _ = joint_runner()
    calls.clear()
    runner.forward(batch_of(runner, THREE))
    tokens = 3 + 5  # (0, 1, 2), then a node for each of the five tokens
    assert calls == [(3, 2, 2 * tokens, 8)] * 2, "sessions, key heads, rows of two groups; two layers"


def test_a_long_slice_of_a_prompt_has_its_own_call(calls: list[tuple[int, ...]]) -> None:
    runner, _ = joint_runner()
    batch = batch_of(runner, [THREE[0], tuple(range(100)), THREE[1]])
    calls.clear()
    logits = runner.forward(batch)
    assert [shape[0] for shape in calls] == [1, 2] * 2
    assert calls[0][2] == 105
    texts = [tree.prompt + answer for tree in batch.trees for answer in ANSWERS]
    for row, text in zip(logits, texts, strict=True):
        torch.testing.assert_close(row, uncached(tiny_model(), text), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("limit", ["_MOST_PAIRS", "_MOST_SLOTS"])
def test_beyond_a_limit_each_session_has_its_own(
    limit: str, calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = session_grids.GridShape(3, 8, 8)  # of this step
    monkeypatch.setattr(session_grids, limit, {"_MOST_PAIRS": 3 * 8 * 8, "_MOST_SLOTS": 3 * 8}[limit])
    assert shape.worthwhile
    runner, _ = joint_runner()
    for by_session in (False, True):
        monkeypatch.setattr(session_grids, limit, getattr(session_grids, limit) - by_session)
        calls.clear()
        runner.forward(batch_of(runner, THREE))
        assert {shape[0] for shape in calls} == ({1} if by_session else {3})


def test_one_session_is_no_company(calls: list[tuple[int, ...]]) -> None:
    runner, _ = joint_runner()
    calls.clear()
    runner.forward(batch_of(runner, THREE[:1]))
    assert [shape[1] for shape in calls] == [4, 4], "heads are not folded"


def test_a_cpu_takes_the_path_by_session_and_other_devices_do_not() -> None:
    assert not make_runner(tiny_model(), CPU, CACHE_BYTES)[0].joint
    meta = torch.device("meta")
    assert make_runner(tiny_model().to(meta), meta, CACHE_BYTES)[0].joint


@torch.inference_mode()
def spoil(runner: ModelRunner, slots: int | slice) -> None:
    for pool in runner.cache._pools():
        pool[slots] = torch.nan


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_what_one_session_holds_spoils_no_other(family: str) -> None:
    """One whose arithmetic overflowed, in the same call, and what was left in slots that nobody has."""
    runner, _ = joint_runner(family)
    expected = runner.forward(batch_of(runner, THREE))
    spoil(runner, slice(None))
    trees = [TokenTree(runner.cache, prompt) for prompt in THREE]
    runner.forward(batch_for(trees, [()]))
    spoil(runner, trees[2].start)
    logits = runner.forward(batch_for(trees, ANSWERS))
    own = 2 * len(ANSWERS)
    torch.testing.assert_close(logits[:own], expected[:own])
    assert logits[own:].isnan().all()


def test_a_base_and_its_adapters_attend_jointly_each_in_its_own_cache(calls: list[tuple[int, ...]]) -> None:
    model = tiny_model()
    group = [runner for runner, _ in shared_runners(model, adapters(model)).values()]
    found = []
    for joint in (False, True):
        for runner in group:
            runner.joint = joint
        calls.clear()
        found.append(forward_together([(runner, batch_of(runner, THREE[: 3 - i])) for i, runner in enumerate(group)]))
    assert [shape[0] for shape in calls] == [3, 2, 1] * 2
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


def test_a_model_over_several_devices(tmp_path: Any) -> None:
    tiny_model().save_pretrained(tmp_path)
    specs = {"m": ModelSpec(str(tmp_path), False)}
    one, several = (
        load_models(WorkerSpec(device, "float32", 1, CACHE_BYTES, specs))["m"][0] for device in ("cpu", "cpu:0+cpu:1")
    )
    several.joint = True
    torch.testing.assert_close(several.forward(batch_of(several, THREE)), one.forward(batch_of(one, THREE)))


def test_a_grid_is_copied_to_another_device_once() -> None:
    shape = session_grids.GridShape(1, 1, 8)
    grid: SessionGrid = session_grids.build_grid((), shape, 1, padding_slot=9)
    other = torch.device("meta")
    assert grid.on(CPU) is grid
    assert {tensor.device for tensor in grid.on(other).tensors} == {other}
    assert grid.on(other) is grid.on(other)
