"""Top logprobs and prompt logprobs, against a model run from scratch (float32, 1e-4)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.tiny import FAMILIES, tiny_model
from tests.worker.test_scheduler import CPU, MODEL, drain, sample_job, state, worker_models
from w2s_core.pool.messages import (
    CloseSession,
    JobOutcome,
    PromptJob,
    PromptResult,
    Row,
    RowUpdate,
    SampleUpdate,
    Sampling,
    ScoreJob,
)
from w2s_core.types import PromptLogprobs, Tokens
from w2s_core.worker import model_group
from w2s_core.worker.batch import Batch
from w2s_core.worker.loading import make_runner
from w2s_core.worker.model_runner import ModelRunner
from w2s_core.worker.models import WorkerModels
from w2s_core.worker.token_tree import TokenTree
from w2s_core.worker.top_logprobs import top_logprobs


def from_scratch(tokens: Tokens, model: torch.nn.Module = MODEL) -> torch.Tensor:
    """(tokens, vocab): log-probabilities of what follows each token."""
    with torch.inference_mode():
        logprobs: torch.Tensor = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    return logprobs


def found(outcomes: list[JobOutcome], job: int) -> PromptLogprobs:
    [result] = [o for o in outcomes if isinstance(o, PromptResult) and o.id == job]
    return result.logprobs


def assert_right(result: PromptLogprobs, prompt: Tokens, top: int, model: torch.nn.Module = MODEL) -> None:
    expected = from_scratch(prompt, model)[:-1]
    followers = torch.tensor(prompt[1:], dtype=torch.long)
    chosen = expected.gather(1, followers[:, None])[:, 0]
    assert result.logprobs == pytest.approx(chosen.tolist(), abs=1e-4)
    assert len(result.alternatives) == len(result.ranks) == len(prompt) - 1
    best = expected.topk(max(top, 1), dim=1)
    for i, alternatives in enumerate(result.alternatives):
        assert [nats for _, nats in alternatives] == pytest.approx(best.values[i, :top].tolist(), abs=1e-4)
        for token, nats in alternatives:
            assert nats == pytest.approx(expected[i, token].item(), abs=1e-4)
            assert token != prompt[i + 1] or nats == result.logprobs[i], "equal to the last bit: lm-eval compares them"
        tolerance = int((expected[i] - chosen[i]).abs().lt(1e-4).sum())  # near ties
        assert abs(result.ranks[i] - int((expected[i] > chosen[i]).sum()) - 1) < tolerance


def numbers(count: int, seed: int = 0) -> Tokens:
    chance = random.Random(seed)
    return tuple(chance.randrange(256) for _ in range(count))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_prompts_logprobs_for_each_family(family: str) -> None:
    subject = WorkerModels({"m": make_runner(tiny_model(family), CPU, 1 << 22)})
    prompt = numbers(40)
    subject.handle(PromptJob(1, 1, "m", prompt, 3))
    assert_right(found(drain(subject), 1), prompt, 3, tiny_model(family))


@pytest.mark.parametrize("length", [1, 2, 256, 257, 258, 500])
def test_prompts_of_any_length_in_bounded_slices(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, rows = worker_models(), []
    forward = model_group.forward_together

    def counted_forward(batches: Sequence[tuple[ModelRunner, Batch]]) -> list[torch.Tensor]:
        [logits] = forward(batches)
        rows.append(len(logits))
        return [logits]

    monkeypatch.setattr(model_group, "forward_together", counted_forward)
    prompt = numbers(length)
    subject.handle(PromptJob(1, 1, "m", prompt, 2))
    assert_right(found(drain(subject), 1), prompt, 2)
    assert sum(rows) == length - 1
    assert max(rows, default=0) <= 256, "logits of the whole text at once"


def test_prompt_logprobs_do_not_use_the_prefix_cache_but_fill_it() -> None:
    subject, prompt = worker_models(), numbers(60)
    for number in (1, 2):
        subject.handle(sample_job(10 + number, [Row((), 1, 3)], prompt))
        drain(subject)
        subject.handle(PromptJob(number, number, "m", prompt, 1))
        assert_right(found(drain(subject), number), prompt, 1)
        subject.handle(CloseSession(10 + number))
        subject.handle(CloseSession(number))
    subject.handle(sample_job(3, [Row((), 1, 3)], prompt))
    assert subject._schedulers["m"].trees[3].prompt_computed == 59
    drain(subject)
    state(subject)


def test_prompt_logprobs_survive_preemption(monkeypatch: pytest.MonkeyPatch) -> None:
    """Younger sessions are preempted in the middle of their prompts and keep their results so far."""
    monkeypatch.setattr("w2s_core.worker.scheduler._TOKEN_BUDGET", 32)
    subject, lost = worker_models(cache_bytes=256 * 400), []
    evict = TokenTree.evict
    monkeypatch.setattr(TokenTree, "evict", lambda tree: lost.append(tree.prompt_computed) or evict(tree))
    subject.handle(sample_job(1, [Row((), i, 40) for i in range(8)]))
    for number in (5, 6):
        subject.handle(PromptJob(number, number, "m", numbers(300, number), 2))
    subject.handle(ScoreJob(9, 9, "m", (8, 9), (tuple(range(60)),)))
    outcomes: list[JobOutcome] = []
    while not subject.idle:
        outcomes += subject.step()
        state(subject)
    assert max(lost) > 32, "no session lost KV in the middle of a prompt"
    for number in (5, 6):
        assert_right(found(outcomes, number), numbers(300, number), 2)


def rows_of(outcomes: list[JobOutcome], job: int) -> list[RowUpdate]:
    return [row for o in outcomes if isinstance(o, SampleUpdate) and o.id == job for row in o.rows]


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.0}, {"temperature": 0.5, "top_k": 3}])
def test_alternatives_stand_beside_what_was_drawn(changes: dict[str, Any]) -> None:
    subject, prompt = worker_models(), (1, 2, 3)
    subject.handle(
        sample_job(1, [Row((), 7, 20), Row((), 8, 20)], prompt, sampling=Sampling(**changes, alternatives=4))
    )
    subject.handle(sample_job(2, [Row((), 7, 20)], prompt, sampling=Sampling(**changes, alternatives=1)))
    subject.handle(sample_job(3, [Row((), 7, 20)], prompt, sampling=Sampling(**changes)))
    outcomes = drain(subject)
    asked, less, nothing = rows_of(outcomes, 1)[0], rows_of(outcomes, 2)[0], rows_of(outcomes, 3)[0]
    assert asked.tokens == less.tokens == nothing.tokens
    assert asked.logprobs == pytest.approx(nothing.logprobs, abs=1e-5), "asking must not change the draws"
    assert nothing.alternatives == ()
    assert [[token for token, _ in found[:1]] for found in asked.alternatives] == [
        [token for token, _ in found] for found in less.alternatives
    ]
    expected = from_scratch(prompt + asked.tokens)[len(prompt) - 1 :]
    drawn = (*asked.tokens, *([asked.ending] if asked.ended else []))
    for i, (token, alternatives) in enumerate(zip(drawn, asked.alternatives, strict=True)):
        assert [nats for _, nats in alternatives] == pytest.approx(expected[i].topk(4).values.tolist(), abs=1e-4)
        assert asked.logprobs[i] == pytest.approx(expected[i, token].item(), abs=1e-4), "before temperature and top_k"
        assert dict(alternatives).get(token, asked.logprobs[i]) == asked.logprobs[i], "equal to the last bit"


def test_a_drawn_tokens_logprob_is_the_same_among_the_alternatives_to_the_last_bit() -> None:
    subject = worker_models()
    subject.handle(sample_job(1, [Row((), key, 20) for key in range(8)], sampling=Sampling(alternatives=300)))
    for row in rows_of(drain(subject), 1):
        for token, nats, alternatives in zip(row.tokens, row.logprobs, row.alternatives, strict=False):
            assert dict(alternatives)[token] == nats


def test_only_rows_that_ask_get_top_logprobs(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, sizes = worker_models(), []
    monkeypatch.setattr(
        "w2s_core.worker.step_outputs.top_logprobs", lambda rows, n: sizes.append(len(rows)) or top_logprobs(rows, n)
    )
    subject.handle(sample_job(1, [Row((), 7, 5)] * 3))
    drain(subject)
    assert not sizes
    subject.handle(sample_job(2, [Row((), 7, 5)] * 3))
    subject.handle(sample_job(3, [Row((), 7, 5)], sampling=Sampling(alternatives=2)))
    drain(subject)
    assert set(sizes) == {1}
