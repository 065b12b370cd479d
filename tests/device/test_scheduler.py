"""Jobs on a real (tiny) model, in process: scores from scratch, sampling alone and in company, failures."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from tests.tiny import EOS, tiny_model
from w2s_core.device import model_queue
from w2s_core.device.jobs import (
    CancelJob,
    CloseSession,
    InspectJob,
    JobFailed,
    Outcome,
    Row,
    SampleJob,
    SampleNews,
    Sampling,
    ScoreJob,
    ScoreResult,
    StopRows,
    WorkerState,
)
from w2s_core.device.kv_cache import Region
from w2s_core.device.loading import make_runner
from w2s_core.device.scheduler import Scheduler

CPU = torch.device("cpu")
MODEL = tiny_model()


def scheduler(cache_bytes: int = 1 << 22) -> Scheduler:
    return Scheduler({"m": make_runner(tiny_model(), CPU, cache_bytes)})


def drain(subject: Scheduler) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while not subject.idle:
        outcomes += subject.turn()
    return outcomes


def state(subject: Scheduler) -> WorkerState:
    [answer] = subject.take(InspectJob(0))
    assert isinstance(answer, WorkerState)
    return answer


def sample_job(number: int, rows: Sequence[Row], prompt: tuple[int, ...] = (1, 2, 3), **changes: object) -> SampleJob:
    settings = {"sampling": Sampling(), "report_every": 100} | changes
    return SampleJob(number, number, "m", prompt, tuple(rows), **settings)  # type: ignore[arg-type]


def drawn(outcomes: list[Outcome], job: int, rows: int) -> list[tuple[int, ...]]:
    tokens: list[tuple[int, ...]] = [()] * rows
    for news in (o for o in outcomes if isinstance(o, SampleNews) and o.id == job):
        for row in news.rows:
            tokens[row.row] += row.tokens + ((EOS,) if row.ended else ())
    return tokens


def logprob_from_scratch(prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    with torch.inference_mode():
        logits = MODEL(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))


def test_incremental_scores_equal_scores_from_scratch_even_when_the_tail_was_retokenized() -> None:
    subject, chance = scheduler(), random.Random(5)
    prompt, beam = (5, 6, 7), [()]
    for number in range(1, 8):
        answers: list[tuple[int, ...]] = []
        for y in beam:
            for _ in range(4):
                cut = max(0, len(y) - chance.randrange(3))  # tokens at the end may turn into others
                answers.append((*y[:cut], *(chance.randrange(5) for _ in range(chance.randrange(1, 5)))))
        subject.take(ScoreJob(number, 1, "m", prompt, tuple(answers)))
        [result] = drain(subject)
        assert isinstance(result, ScoreResult)
        expected = [logprob_from_scratch(prompt, y) for y in answers]
        assert result.logprobs == pytest.approx(expected, abs=1e-4)
        state(subject)
        beam = chance.sample(answers, 3)
    assert result.tokens_run < sum(map(len, answers)), "the whole answer was run again"


def test_what_was_scored_once_costs_nothing_again() -> None:
    subject = scheduler()
    known = (1, 2, 3, 4)  # its last token is not run until something stands behind it
    for number, answer, expected in ((1, known, 2 + 3), (2, known, 0), (3, (*known, 9), 1)):
        subject.take(ScoreJob(number, 1, "m", (5, 6), (answer,)))
        [result] = drain(subject)
        assert isinstance(result, ScoreResult)
        assert result.tokens_run == expected


def test_an_empty_answer_scores_zero_and_scoring_is_bounded_per_turn() -> None:
    subject = scheduler()
    long = tuple(i % 7 for i in range(400))
    subject.take(ScoreJob(1, 1, "m", (5,), ((), long)))
    [result] = drain(subject)
    assert isinstance(result, ScoreResult)
    assert result.logprobs[0] == 0.0
    assert result.logprobs[1] == pytest.approx(logprob_from_scratch((5,), long), rel=1e-5)


def test_a_request_draws_the_same_alone_and_in_any_company() -> None:
    rows = [Row((), key, 20) for key in range(6)]
    alone = scheduler()
    alone.take(sample_job(1, rows))
    expected = drawn(drain(alone), 1, 6)
    company = scheduler()
    chance = random.Random(1)
    company.take(sample_job(7, [Row((), 99, 40)], tuple(range(80)), sampling=Sampling(0.5, top_k=9)))
    outcomes = company.turn() + company.turn()
    company.take(sample_job(1, rows))
    for number in range(2, 7):
        prompt = tuple(chance.randrange(256) for _ in range(chance.randrange(1, 60)))
        company.take(sample_job(number, [Row((), number, 30)] * 3, prompt, sampling=Sampling(top_p=0.8)))
        company.take(ScoreJob(number + 50, number + 50, "m", prompt, ((1, 2, 3),)))
        outcomes += company.turn()
    outcomes += drain(company)
    assert drawn(outcomes, 1, 6) == expected


def test_a_search_continued_elsewhere_draws_the_same() -> None:
    """The tokens so far and the key are all there is: another worker, with nothing in its cache, goes on the same."""
    whole = scheduler()
    whole.take(sample_job(1, [Row((), 7, 30)], sampling=Sampling(0.9)))
    [tokens] = drawn(drain(whole), 1, 1)
    assert len(tokens) == 30, "choose a key whose answer does not end"
    other = scheduler()
    other.take(sample_job(2, [Row(tokens[:13], 7, 17)], sampling=Sampling(0.9)))
    assert drawn(drain(other), 2, 1) == [tokens[13:]]


def test_equal_rows_share_their_kv() -> None:
    subject = scheduler()
    subject.take(sample_job(1, [Row((), 7, 20)] * 16))
    turns = 0
    while not subject.idle:
        subject.turn()
        turns += 1
    tree = subject._queues["m"].trees[1]
    assert tree.top <= 3 + 20, "equal beginnings were stored more than once"


def test_stopped_and_cancelled_rows_leave_at_once() -> None:
    subject = scheduler()
    subject.take(sample_job(1, [Row((), 7, 50), Row((), 8, 5)], report_every=2))
    subject.turn()
    subject.take(StopRows(1, (0,)))
    outcomes = drain(subject)
    last = outcomes[-1]
    assert isinstance(last, SampleNews)
    assert last.finished
    assert sum(isinstance(o, SampleNews) for o in outcomes) <= 5
    subject.take(sample_job(2, [Row((), 7, 50)]))
    subject.turn()
    subject.take(CancelJob(2))
    assert subject.idle
    for session in (1, 2):
        subject.take(CloseSession(session))
    assert state(subject).slots_used == {"m": 0}


@pytest.mark.parametrize(("report_every", "reported"), [(1, [1] * 6), (4, [4, 2])])
def test_news_comes_every_report_every_tokens(report_every: int, reported: list[int]) -> None:
    subject = scheduler()
    subject.take(sample_job(1, [Row((), 7, 6)], report_every=report_every))
    news = [outcome for outcome in drain(subject) if isinstance(outcome, SampleNews)]
    assert [len(row.tokens) for told in news for row in told.rows] == reported


def test_a_request_that_does_not_fit_alone_fails_and_the_worker_goes_on() -> None:
    subject = scheduler(cache_bytes=256 * 120)
    jobs = [sample_job(1, [Row((), 1, 5)], tuple(range(200))), sample_job(2, [Row((), i, 60) for i in range(8)])]
    for job in jobs:
        subject.take(job)
        [failed] = drain(subject)
        assert isinstance(failed, JobFailed)
        assert failed.field == "max_tokens"
        assert state(subject).slots_used == {"m": 0}
    subject.take(sample_job(3, [Row((), 1, 5)]))
    assert len(drawn(drain(subject), 3, 1)[0]) == 5


def test_a_request_that_does_not_fit_alone_fails_without_those_that_wait_for_room() -> None:
    subject = scheduler(cache_bytes=256 * 120)
    subject.take(sample_job(1, [Row((), i, 60) for i in range(8)]))
    subject.take(sample_job(2, [Row((), 1, 60)]))
    outcomes = drain(subject)
    assert [o.id for o in outcomes if isinstance(o, JobFailed)] == [1]
    alone = scheduler()
    alone.take(sample_job(2, [Row((), 1, 60)]))
    assert drawn(outcomes, 2, 1) == drawn(drain(alone), 2, 1)


def test_requests_that_fit_only_one_by_one_all_finish_with_the_answers_they_give_alone() -> None:
    """Each needs up to 3 + 4·40 of 220 slots: KV is taken from the younger, who run their tokens again later."""
    jobs = [sample_job(number, [Row((), number * 10 + i, 40) for i in range(4)]) for number in range(1, 5)]
    alone = []
    for job in jobs:
        subject = scheduler()
        subject.take(job)
        alone.append(drawn(drain(subject), job.id, 4))
    subject = scheduler(cache_bytes=256 * 220)
    for job in jobs:
        subject.take(job)
    subject.take(ScoreJob(9, 9, "m", (8, 9), (tuple(range(60)),)))
    outcomes: list[Outcome] = []
    while not subject.idle:
        outcomes += subject.turn()
        state(subject)  # integrity, in every turn
    assert not [o for o in outcomes if isinstance(o, JobFailed)]
    assert [drawn(outcomes, job.id, 4) for job in jobs] == alone
    [score] = [o for o in outcomes if isinstance(o, ScoreResult)]
    assert score.logprobs[0] == pytest.approx(logprob_from_scratch((8, 9), tuple(range(60))), rel=1e-5)


def test_an_idle_session_gives_way_and_comes_back() -> None:
    subject = scheduler(cache_bytes=256 * 150)
    first = sample_job(1, [Row((), 1, 60)])
    subject.take(first)
    [tokens] = drawn(drain(subject), 1, 1)
    subject.take(sample_job(2, [Row((), 2, 60), Row((), 3, 60)]))
    assert len(drawn(drain(subject), 2, 2)[0]) == 60
    assert subject._queues["m"].trees[1].region is None, "the idle session should have given way"
    again = SampleJob(3, 1, "m", (1, 2, 3), (Row(tokens[:30], 1, 30),), Sampling(), 100)
    subject.take(again)
    assert drawn(drain(subject), 3, 1) == [tokens[30:]]


def test_a_prompt_that_comes_again_is_not_run_again() -> None:
    subject = scheduler()
    system, prompt = tuple(range(100)), (*range(100), 7, 8, 9)
    subject.take(sample_job(1, [Row((), 1, 5)], prompt))
    expected = drawn(drain(subject), 1, 1)
    queue = subject._queues["m"]
    for number, same, known in ((2, prompt, 102), (3, (*system, 50, 51), 100), (4, (1, *prompt), 0)):
        subject.take(sample_job(number, [Row((), 1, 5)], same))
        assert queue.trees[number].prompt_fed == known
        answer = drawn(drain(subject), number, 1)
        assert (answer == expected) == (same == prompt)
        reference = scheduler()
        reference.take(sample_job(number, [Row((), 1, 5)], same))
        assert drawn(drain(reference), number, 1) == answer
    for number in (1, 2, 3, 4):
        subject.take(CloseSession(number))
    assert state(subject).slots_used == {"m": 0}
    subject.take(sample_job(5, [Row((), 1, 5)], prompt))
    assert queue.trees[5].prompt_fed == 102, "a closed session's prompt is remembered"


def test_remembered_prompts_are_bounded_and_the_oldest_go_first() -> None:
    subject = scheduler(cache_bytes=256 * 1000)
    for number in range(1, 6):
        subject.take(sample_job(number, [Row((), 1, 2)], tuple(range(number, number + 100))))
        drain(subject)
        subject.take(CloseSession(number))
    queue = subject._queues["m"]
    assert 99 <= queue.prefixes.slots <= 250
    assert [prompt[0] for prompt in queue.prefixes._prompts] == [4, 5]
    state(subject)


def test_the_least_recently_used_prompt_is_forgotten_first() -> None:
    subject = scheduler(cache_bytes=256 * 1000)
    queue = subject._queues["m"]
    for number, first in enumerate((1, 2, 1, 3), start=1):
        subject.take(sample_job(number, [Row((), 1, 2)], tuple(range(first, first + 100))))
        drain(subject)
        subject.take(CloseSession(number))
    assert sorted(prompt[0] for prompt in queue.prefixes._prompts) == [1, 3]


def test_a_failing_forward_fails_its_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = scheduler()
    subject.take(sample_job(1, [Row((), 1, 5)]))
    with monkeypatch.context() as patch:
        patch.setattr(subject._queues["m"].runner, "_model", broken_model)
        [failed] = subject.turn()
    assert isinstance(failed, JobFailed)
    assert "out of memory" in failed.message
    assert state(subject).sessions == {"m": 0}
    subject.take(sample_job(1, [Row((), 1, 5)]))
    assert len(drawn(drain(subject), 1, 1)[0]) == 5


def test_kv_of_a_failed_forward_is_not_remembered_as_a_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch had marked the prompt as fed before the forward failed."""
    job = sample_job(1, [Row((), 1, 5)], tuple(range(40)))
    healthy = scheduler()
    healthy.take(job)
    expected = drawn(drain(healthy), 1, 1)
    subject = scheduler()
    with monkeypatch.context() as patch:
        patch.setattr(subject._queues["m"].runner, "_model", broken_model)
        subject.take(job)
        [failed] = subject.turn()
    assert isinstance(failed, JobFailed)
    subject.take(job)
    assert drawn(drain(subject), 1, 1) == expected


def test_no_memory_for_the_draw_fails_its_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sessions; one was in the batch whose draw failed, the other comes after it and loses nothing."""
    subject = scheduler()
    subject.take(sample_job(1, [Row((), 1, 5)]))
    with monkeypatch.context() as patch:
        patch.setattr(model_queue, "draw_tokens", broken_model)
        [failed] = subject.turn()
    assert isinstance(failed, JobFailed)
    assert "out of memory" in failed.message
    assert failed.field is None
    assert state(subject).slots_used == {"m": 0}
    subject.take(sample_job(2, [Row((), 1, 5)]))
    assert len(drawn(drain(subject), 2, 1)[0]) == 5


def test_no_memory_for_moving_kv_makes_others_give_way_or_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wants to grow while the device has no room to move anything waits, and is answered later as alone."""
    jobs = [sample_job(number, [Row((), number, 200)]) for number in (1, 2)]
    alone = []
    for job in jobs:
        subject = scheduler()
        subject.take(job)
        alone.append(drawn(drain(subject), job.id, 1))
    subject = scheduler()
    cache = subject._queues["m"].runner.cache
    grow, refused = cache.grow, []

    def no_room(region: Region, size: int) -> None:
        if len(refused) < 3:
            refused.append(size)
            raise torch.OutOfMemoryError("out of memory")
        grow(region, size)

    monkeypatch.setattr(cache, "grow", no_room)
    for job in jobs:
        subject.take(job)
    outcomes: list[Outcome] = []
    while not subject.idle:
        outcomes += subject.turn()
        state(subject)
    assert len(refused) == 3
    assert not [o for o in outcomes if isinstance(o, JobFailed)]
    assert [drawn(outcomes, job.id, 1) for job in jobs] == alone


def test_a_device_that_answers_nobody_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """After such an error no kernel runs in this process any more: the pool must start another."""

    def lost(*_: object) -> None:
        raise torch.AcceleratorError("device-side assert triggered")

    subject = scheduler()
    subject.take(sample_job(1, [Row((), 1, 5)]))
    monkeypatch.setattr(model_queue, "draw_tokens", lost)
    with pytest.raises(torch.AcceleratorError):
        subject.turn()


def broken_model(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("out of memory")


def test_a_request_that_trips_over_a_bug_fails_alone() -> None:
    """A token that no embedding has: the worker must live on, or one request could kill every worker in turn."""
    subject = scheduler()
    subject.take(sample_job(1, [Row((), 1, 5)], (1, 2, 99_999)))
    [failed] = drain(subject)
    assert isinstance(failed, JobFailed)
    assert failed.field is None
    subject.take(sample_job(2, [Row((), 1, 5)]))
    assert len(drawn(drain(subject), 2, 1)[0]) == 5
    assert state(subject).sessions == {"m": 1}
