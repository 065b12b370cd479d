"""The scheduler on a real (tiny) model, in process: scores, sampling in any batch, preemption, cached prefixes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from tests.tiny import EOS, tiny_model
from w2s_core.pool.messages import (
    CancelJob,
    CloseSession,
    InspectJob,
    JobFailed,
    JobOutcome,
    Row,
    SampleJob,
    SampleUpdate,
    Sampling,
    ScoreJob,
    ScoreResult,
    StopRows,
    WorkerState,
)
from w2s_core.worker.loading import make_runner
from w2s_core.worker.models import WorkerModels

CPU = torch.device("cpu")
MODEL = tiny_model()


NO_END = Sampling(ignore_eos=True)  # for tests that need answers of a known length


def worker_models(cache_bytes: int = 1 << 22) -> WorkerModels:
    return WorkerModels({"m": make_runner(tiny_model(), CPU, cache_bytes)})


def drain(subject: WorkerModels) -> list[JobOutcome]:
    outcomes: list[JobOutcome] = []
    while not subject.idle:
        outcomes += subject.step()
    return outcomes


def state(subject: WorkerModels) -> WorkerState:
    [answer] = subject.handle(InspectJob(0))
    assert isinstance(answer, WorkerState)
    return answer


def sample_job(number: int, rows: Sequence[Row], prompt: tuple[int, ...] = (1, 2, 3), **changes: object) -> SampleJob:
    settings = {"sampling": Sampling(), "report_every": 100} | changes
    return SampleJob(number, number, "m", prompt, tuple(rows), **settings)  # type: ignore[arg-type]


def drawn(outcomes: list[JobOutcome], job: int, rows: int) -> list[tuple[int, ...]]:
    tokens: list[tuple[int, ...]] = [()] * rows
    for update in (o for o in outcomes if isinstance(o, SampleUpdate) and o.id == job):
        for row in update.rows:
            tokens[row.row] += row.tokens + ((EOS,) if row.ended else ())
    return tokens


def logprob_from_scratch(prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    with torch.inference_mode():
        logits = MODEL(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))


def test_incremental_scores_equal_scores_from_scratch_even_when_the_tail_was_retokenized() -> None:
    subject, chance = worker_models(), random.Random(5)
    prompt, beam = (5, 6, 7), [()]
    for number in range(1, 8):
        answers: list[tuple[int, ...]] = []
        for y in beam:
            for _ in range(4):
                cut = max(0, len(y) - chance.randrange(3))  # tokens at the end may turn into others
                answers.append((*y[:cut], *(chance.randrange(5) for _ in range(chance.randrange(1, 5)))))
        subject.handle(ScoreJob(number, 1, "m", prompt, tuple(answers)))
        [result] = drain(subject)
        assert isinstance(result, ScoreResult)
        expected = [logprob_from_scratch(prompt, y) for y in answers]
        assert result.logprobs == pytest.approx(expected, abs=1e-4)
        state(subject)
        beam = chance.sample(answers, 3)
    assert result.tokens_run < sum(map(len, answers)), "the whole answer was run again"


def test_scored_tokens_are_not_run_again() -> None:
    subject = worker_models()
    known = (1, 2, 3, 4)  # its last token is not run until an answer continues it
    for number, answer, expected in ((1, known, 2 + 3), (2, known, 0), (3, (*known, 9), 1)):
        subject.handle(ScoreJob(number, 1, "m", (5, 6), (answer,)))
        [result] = drain(subject)
        assert isinstance(result, ScoreResult)
        assert result.tokens_run == expected


def test_an_empty_answer_scores_zero_and_scoring_is_bounded_per_step() -> None:
    subject = worker_models()
    long = tuple(i % 7 for i in range(400))
    subject.handle(ScoreJob(1, 1, "m", (5,), ((), long)))
    [result] = drain(subject)
    assert isinstance(result, ScoreResult)
    assert result.logprobs[0] == 0.0
    assert result.logprobs[1] == pytest.approx(logprob_from_scratch((5,), long), rel=1e-5)


def test_a_request_draws_the_same_alone_and_in_any_batch() -> None:
    rows = [Row((), key, 20) for key in range(6)]
    alone = worker_models()
    alone.handle(sample_job(1, rows))
    expected = drawn(drain(alone), 1, 6)
    company = worker_models()
    chance = random.Random(1)
    company.handle(sample_job(7, [Row((), 99, 40)], tuple(range(80)), sampling=Sampling(0.5, top_k=9)))
    outcomes = company.step() + company.step()
    company.handle(sample_job(1, rows))
    for number in range(2, 7):
        prompt = tuple(chance.randrange(256) for _ in range(chance.randrange(1, 60)))
        company.handle(sample_job(number, [Row((), number, 30)] * 3, prompt, sampling=Sampling(top_p=0.8)))
        company.handle(ScoreJob(number + 50, number + 50, "m", prompt, ((1, 2, 3),)))
        outcomes += company.step()
    outcomes += drain(company)
    assert drawn(outcomes, 1, 6) == expected


def test_a_search_that_fails_over_draws_the_same() -> None:
    """The tokens so far and the key are the whole state: another worker, with an empty cache, draws the same tokens."""
    whole = worker_models()
    whole.handle(sample_job(1, [Row((), 7, 30)], sampling=Sampling(0.9)))
    [tokens] = drawn(drain(whole), 1, 1)
    assert len(tokens) == 30, "choose a key whose answer does not end"
    other = worker_models()
    other.handle(sample_job(2, [Row(tokens[:13], 7, 17)], sampling=Sampling(0.9)))
    assert drawn(drain(other), 2, 1) == [tokens[13:]]


def test_equal_rows_share_their_kv() -> None:
    subject = worker_models()
    subject.handle(sample_job(1, [Row((), 7, 20)] * 16))
    while not subject.idle:
        subject.step()
    tree = subject._schedulers["m"].trees[1]
    assert tree.slot_end <= 3 + 20, "equal prefixes were stored more than once"


def test_stopped_and_cancelled_rows_leave_at_once() -> None:
    subject = worker_models()
    subject.handle(sample_job(1, [Row((), 7, 50), Row((), 8, 5)], report_every=2))
    subject.step()
    subject.handle(StopRows(1, (0,)))
    outcomes = drain(subject)
    last = outcomes[-1]
    assert isinstance(last, SampleUpdate)
    assert last.finished
    assert sum(isinstance(o, SampleUpdate) for o in outcomes) <= 5
    subject.handle(sample_job(2, [Row((), 7, 50)]))
    subject.step()
    subject.handle(CancelJob(2))
    assert subject.idle
    for session in (1, 2):
        subject.handle(CloseSession(session))
    assert state(subject).slots_used == {"m": 0}


@pytest.mark.parametrize(("report_every", "reported"), [(1, [1] * 6), (4, [4, 2])])
def test_updates_come_every_report_every_tokens(report_every: int, reported: list[int]) -> None:
    subject = worker_models()
    subject.handle(sample_job(1, [Row((), 7, 6)], report_every=report_every))
    updates = [outcome for outcome in drain(subject) if isinstance(outcome, SampleUpdate)]
    assert [len(row.tokens) for update in updates for row in update.rows] == reported


def test_a_request_that_does_not_fit_alone_fails_and_the_worker_goes_on() -> None:
    subject = worker_models(cache_bytes=256 * 120)
    jobs = [sample_job(1, [Row((), 1, 5)], tuple(range(200))), sample_job(2, [Row((), i, 60) for i in range(8)])]
    for job in jobs:
        subject.handle(job)
        [failed] = [outcome for outcome in drain(subject) if isinstance(outcome, JobFailed)]
        assert failed.field == "max_tokens"
        assert state(subject).slots_used == {"m": 0}
    subject.handle(sample_job(3, [Row((), 1, 5)]))
    assert len(drawn(drain(subject), 3, 1)[0]) == 5


def test_a_request_that_does_not_fit_alone_fails_without_those_that_wait_for_room() -> None:
    subject = worker_models(cache_bytes=256 * 120)
    subject.handle(sample_job(1, [Row((), i, 60) for i in range(8)]))
    subject.handle(sample_job(2, [Row((), 1, 60)]))
    outcomes = drain(subject)
    assert [o.id for o in outcomes if isinstance(o, JobFailed)] == [1]
    alone = worker_models()
    alone.handle(sample_job(2, [Row((), 1, 60)]))
    assert drawn(outcomes, 2, 1) == drawn(drain(alone), 2, 1)


def test_requests_that_fit_only_one_by_one_all_finish_with_the_answers_they_give_alone() -> None:
    """Each needs up to 3 + 4·40 of 220 slots: younger sessions are preempted and run their tokens again later."""
    jobs = [sample_job(number, [Row((), number * 10 + i, 40) for i in range(4)]) for number in range(1, 5)]
    alone = []
    for job in jobs:
        subject = worker_models()
        subject.handle(job)
        alone.append(drawn(drain(subject), job.id, 4))
    subject = worker_models(cache_bytes=256 * 220)
    for job in jobs:
        subject.handle(job)
    subject.handle(ScoreJob(9, 9, "m", (8, 9), (tuple(range(60)),)))
    outcomes: list[JobOutcome] = []
    while not subject.idle:
        outcomes += subject.step()
        state(subject)  # checks integrity after every step
    assert not [o for o in outcomes if isinstance(o, JobFailed)]
    assert [drawn(outcomes, job.id, 4) for job in jobs] == alone
    [score] = [o for o in outcomes if isinstance(o, ScoreResult)]
    assert score.logprobs[0] == pytest.approx(logprob_from_scratch((8, 9), tuple(range(60))), rel=1e-5)


def test_an_idle_session_is_evicted_and_comes_back() -> None:
    subject = worker_models(cache_bytes=256 * 150)
    first = sample_job(1, [Row((), 1, 60)], sampling=NO_END)
    subject.handle(first)
    [tokens] = drawn(drain(subject), 1, 1)
    subject.handle(sample_job(2, [Row((), 2, 60), Row((), 3, 60)], sampling=NO_END))
    assert len(drawn(drain(subject), 2, 2)[0]) == 60
    assert not subject._schedulers["m"].trees[1].resident, "the idle session should have been evicted"
    again = SampleJob(3, 1, "m", (1, 2, 3), (Row(tokens[:30], 1, 30),), NO_END, 100)
    subject.handle(again)
    assert drawn(drain(subject), 3, 1) == [tokens[30:]]


def test_a_cached_prefix_is_not_run_again() -> None:
    subject = worker_models()
    system, prompt = tuple(range(100)), (*range(100), 7, 8, 9)
    subject.handle(sample_job(1, [Row((), 1, 5)], prompt))
    expected = drawn(drain(subject), 1, 1)
    scheduler = subject._schedulers["m"]
    for number, same, known in ((2, prompt, 102), (3, (*system, 50, 51), 100), (4, (1, *prompt), 0)):
        subject.handle(sample_job(number, [Row((), 1, 5)], same))
        assert scheduler.trees[number].prompt_computed == known
        answer = drawn(drain(subject), number, 1)
        assert (answer == expected) == (same == prompt)
        reference = worker_models()
        reference.handle(sample_job(number, [Row((), 1, 5)], same))
        assert drawn(drain(reference), number, 1) == answer
    for number in (1, 2, 3, 4):
        subject.handle(CloseSession(number))
    assert state(subject).slots_used == {"m": 0}
    subject.handle(sample_job(5, [Row((), 1, 5)], prompt))
    assert scheduler.trees[5].prompt_computed == 102, "a closed session's prompt is cached"


def test_cached_prompts_are_bounded_and_the_oldest_are_evicted_first() -> None:
    subject = worker_models(cache_bytes=256 * 1000)
    for number in range(1, 6):
        subject.handle(sample_job(number, [Row((), 1, 2)], tuple(range(number, number + 100))))
        drain(subject)
        subject.handle(CloseSession(number))
    scheduler = subject._schedulers["m"]
    assert 99 <= scheduler.prefix_cache.slots_used <= 250
    assert [prompt[0] for prompt in scheduler.prefix_cache._prompts] == [4, 5]
    state(subject)


def test_the_least_recently_used_prompt_is_evicted_first() -> None:
    subject = worker_models(cache_bytes=256 * 1000)
    scheduler = subject._schedulers["m"]
    for number, first in enumerate((1, 2, 1, 3), start=1):
        subject.handle(sample_job(number, [Row((), 1, 2)], tuple(range(first, first + 100))))
        drain(subject)
        subject.handle(CloseSession(number))
    assert sorted(prompt[0] for prompt in scheduler.prefix_cache._prompts) == [1, 3]
