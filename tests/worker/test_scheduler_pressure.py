"""The scheduler under pressure: requests that wait for room, unreadable token ids, logits that are no numbers."""

from __future__ import annotations

import math
from concurrent.futures import Future

import pytest
import torch
from llguidance import LLMatcher

from tests.tiny import VOCABULARY, tiny_model
from tests.worker.test_scheduler import NO_END, drain, drawn, sample_job, state, worker_models
from w2s_core.pool.messages import (
    JobFailed,
    JobOutcome,
    PromptJob,
    Row,
    SampleJob,
    SampleUpdate,
    Sampling,
    ScoreJob,
    StopRows,
)
from w2s_core.types import Grammar
from w2s_core.worker.loading import make_runner
from w2s_core.worker.models import WorkerModels

CPU = torch.device("cpu")
YOUNGER = sample_job(2, [Row((), 2, 30)], tuple(range(90)), sampling=NO_END)


def alone(job: SampleJob) -> list[tuple[int, ...]]:
    subject = worker_models()
    subject.handle(job)
    return drawn(drain(subject), job.id, len(job.rows))


def failures(outcomes: list[JobOutcome]) -> list[JobFailed]:
    return [outcome for outcome in outcomes if isinstance(outcome, JobFailed)]


def crowded() -> WorkerModels:
    """200 slots, about 130 of which the session 1 holds: YOUNGER fits once that one has no task."""
    return worker_models(cache_bytes=256 * 200)


def test_a_request_waits_for_an_older_one_whose_rows_were_just_stopped() -> None:
    subject = crowded()
    subject.handle(sample_job(1, [Row((), 7, 90), Row((), 8, 90)], sampling=NO_END))
    for _ in range(60):
        subject.step()
    subject.handle(StopRows(1, (0, 1)))
    subject.handle(YOUNGER)
    outcomes = drain(subject)
    assert not failures(outcomes)
    assert drawn(outcomes, 2, 1) == alone(YOUNGER)


def test_a_request_waits_for_an_older_one_whose_scores_are_known_already() -> None:
    subject = crowded()
    answer = tuple(i % 7 for i in range(120))
    subject.handle(ScoreJob(1, 1, "m", (5, 6), (answer,)))
    drain(subject)
    subject.handle(ScoreJob(3, 1, "m", (5, 6), (answer,)))
    subject.handle(YOUNGER)
    outcomes = drain(subject)
    assert not failures(outcomes)
    assert drawn(outcomes, 2, 1) == alone(YOUNGER)


def test_a_request_waits_for_an_older_one_whose_grammar_still_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = crowded()
    scheduler = subject._schedulers["m"]
    compiling: Future[LLMatcher] = Future()
    monkeypatch.setattr(scheduler, "_compile_grammar", lambda job: compiling if job.sampling.grammar else None)
    prompt = tuple(range(120))
    subject.handle(sample_job(1, [Row((), 7, 1)], prompt))
    drain(subject)
    constrained = Sampling(grammar=Grammar("json", "{}", "response_format"))
    subject.handle(SampleJob(3, 1, "m", prompt, (Row((), 7, 5),), constrained, 100))
    subject.handle(YOUNGER)
    outcomes = [outcome for _ in range(5) for outcome in subject.step()]
    assert not failures(outcomes)
    compiling.set_exception(ValueError("no such grammar"))
    outcomes += drain(subject)
    assert [failure.id for failure in failures(outcomes)] == [3]
    assert drawn(outcomes, 2, 1) == alone(YOUNGER)


@pytest.mark.parametrize(
    "job",
    [
        sample_job(1, [Row((), 1, 5)], (1, 2, VOCABULARY)),
        sample_job(1, [Row((4, VOCABULARY), 1, 5)]),
        sample_job(1, [Row((), 1, 5)], (1, -1)),
        ScoreJob(1, 1, "m", (1, 2), ((3,), (4, VOCABULARY))),
        PromptJob(1, 1, "m", (1, VOCABULARY, 2), 0),
    ],
)
def test_ids_without_an_embedding_are_refused_and_reach_no_batch(job: SampleJob | ScoreJob | PromptJob) -> None:
    neighbour = sample_job(2, [Row((), 2, 30)], sampling=NO_END)
    subject = worker_models()
    subject.handle(neighbour)
    outcomes = subject.step()
    refused = subject.handle(job)
    assert [(type(reply), getattr(reply, "id", None)) for reply in refused] == [(JobFailed, 1)]
    assert "300 tokens" in str(refused[0])
    outcomes += drain(subject)
    assert not failures(outcomes)
    assert drawn(outcomes, 2, 1) == alone(neighbour)
    assert state(subject).sessions == {"m": 1}


def test_nothing_is_drawn_that_the_tokenizer_or_the_embedding_does_not_have() -> None:
    """Logits are padded in many models: the likeliest token is one that could not be sent back."""
    runner, info = make_runner(tiny_model(), CPU, 1 << 22, tokens=200)
    assert info.vocabulary == 200
    assert info.eos == frozenset(), "an EOS that no tokenizer has can be neither drawn nor banned"
    subject = WorkerModels({"m": (runner, info)})
    for number, sampling in enumerate((Sampling(4.0), Sampling(0.0), Sampling(4.0, top_k=50), Sampling(min_tokens=9))):
        job = sample_job(number, [Row((), key, 40) for key in range(8)], sampling=sampling)
        subject.handle(job)
        assert max(max(row) for row in drawn(drain(subject), number, 8)) < 200


class BrokenRows(torch.nn.Module):
    """A model whose logits are NaN behind the token 13, at one place or everywhere."""

    def __init__(self, model: torch.nn.Module, value: float, everywhere: bool) -> None:
        super().__init__()
        self.model, self.value, self.everywhere = model, value, everywhere

    def forward(self, *, input_ids: torch.Tensor, logits_to_keep: torch.Tensor, **others: object) -> object:
        output = self.model(input_ids=input_ids, logits_to_keep=logits_to_keep, **others)
        rows = input_ids[0, logits_to_keep] == 13
        output.logits[0, rows, :: 1 if self.everywhere else 100] = self.value
        return output


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "broken",
    [
        sample_job(1, [Row((), 1, 5), Row((13,), 1, 5)]),
        sample_job(1, [Row((13,), 1, 5)], sampling=Sampling(0.0)),
        sample_job(1, [Row((13,), 1, 5)], sampling=Sampling(0.7)),
        sample_job(1, [Row((13,), 1, 5)], sampling=Sampling(top_k=5)),
        sample_job(1, [Row((13,), 1, 5)], sampling=Sampling(top_p=0.5, alternatives=3)),
        sample_job(1, [Row((13,), 1, 5)], sampling=Sampling(presence_penalty=1, min_p=0.1)),
        ScoreJob(1, 1, "m", (1, 2), ((5, 6, 7), (5, 13, 7))),
        PromptJob(1, 1, "m", (1, 13, 2), 3),
    ],
)
def test_logits_that_are_no_numbers_fail_their_request_alone(
    broken: SampleJob | ScoreJob | PromptJob, value: float, everywhere: bool
) -> None:
    subject = worker_models()
    runner = subject._schedulers["m"].runner
    neighbours = [
        sample_job(number, [Row((), number, 30)], sampling=sampling)
        for number, sampling in ((2, NO_END), (3, Sampling(0.7)), (4, Sampling(top_p=0.9)))
    ]
    allowed = Sampling(allowed_token_ids=tuple(range(14, 256)))  # never 13
    neighbours = [
        sample_job(job.id, job.rows, sampling=Sampling(job.sampling.temperature, job.sampling.top_p,
                                                        allowed_token_ids=allowed.allowed_token_ids))
        for job in neighbours
    ]  # fmt: skip
    expected = [alone(job) for job in neighbours]
    runner._model = BrokenRows(runner._model, value, everywhere)
    for job in [*neighbours, broken]:
        subject.handle(job)
    outcomes = drain(subject)
    assert [failure.id for failure in failures(outcomes)] == [1]
    [failure] = failures(outcomes)
    assert failure.field is None
    assert "not finite" in failure.message
    assert [drawn(outcomes, job.id, 1) for job in neighbours] == expected
    assert 1 not in subject._schedulers["m"].trees
    state(subject)


def test_what_is_drawn_is_told_before_it_is_reported() -> None:
    """A client that leaves in the middle of a long chunk is charged for what was drawn."""
    subject = worker_models()
    subject.handle(sample_job(1, [Row((), 1, 50), Row((), 2, 50)], sampling=NO_END, report_every=50))
    told = []
    for _ in range(10):
        [update] = subject.step()
        assert isinstance(update, SampleUpdate)
        assert not update.rows
        told.append(update.unreported)
    assert told == list(range(2, 22, 2))
    last = drain(subject)[-1]
    assert isinstance(last, SampleUpdate)
    assert last.finished
    assert last.unreported == 0
