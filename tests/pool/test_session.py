"""Sessions against a worker that a test plays: what a stream that is closed early has cost, and poisoned jobs."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from w2s_core.errors import WorkerError
from w2s_core.pool.messages import (
    CancelJob,
    Job,
    JobOutcome,
    Row,
    RowUpdate,
    SampleUpdate,
    Sampling,
    ScoreResult,
    WorkerCommand,
)
from w2s_core.pool.process import WorkerLostError
from w2s_core.pool.session import SampleStream, Session

Outcome = JobOutcome | WorkerLostError
ROWS = [Row((), 1, 400), Row((), 2, 400)]


class PlayedWorker:
    """Takes jobs; the test puts outcomes into `mailbox`."""

    def __init__(self) -> None:
        self.rows = 0
        self.jobs: list[Job] = []
        self.sent: list[WorkerCommand] = []
        self.mailbox: asyncio.Queue[Outcome] = asyncio.Queue()

    def submit(self, job: Job) -> asyncio.Queue[Outcome]:
        self.jobs.append(job)
        return self.mailbox

    def send(self, command: WorkerCommand) -> None:
        self.sent.append(command)

    def close_mailbox(self, job_id: int) -> None:
        pass

    def plays(self, *outcomes: Outcome) -> None:
        for outcome in outcomes:
            self.mailbox.put_nowait(outcome)


def session_on(*workers: PlayedWorker) -> Session:
    coming = iter(workers)

    async def pick() -> PlayedWorker:
        return next(coming)

    return Session(1, 2, pick)  # type: ignore[arg-type]


def update(*rows: tuple[int, int], unreported: int = 0, finished: bool = False) -> SampleUpdate:
    """`rows`: the number of new tokens of a row."""
    updates = tuple(RowUpdate(row, (7,) * count, (0.0,) * count, None, finished) for row, count in rows)
    return SampleUpdate(0, updates, finished, unreported)


def stream_of(session: Session) -> SampleStream:
    return session.sample("m", (1, 2), ROWS, Sampling(), report_every=400)


async def test_a_stream_closed_early_has_drawn_what_the_worker_told() -> None:
    """Tokens in no update yet, updates that nobody has read yet, and the other rows of the update just read."""
    worker = PlayedWorker()
    stream = stream_of(session_on(worker))
    async with aclosing(stream.updates()) as updates:
        worker.plays(update(unreported=100), update((0, 60), (1, 50), unreported=0))
        await anext(updates)
        worker.plays(update((0, 5), unreported=3), update(unreported=9))
    assert stream.drawn == 60 + 50 + 5 + 9
    assert isinstance(worker.sent[-1], CancelJob)


async def test_what_a_slow_reader_stops_late_has_been_drawn() -> None:
    worker = PlayedWorker()
    stream = stream_of(session_on(worker))
    worker.plays(*[update((0, 1), (1, 1))] * 50, update(finished=True))
    async for row in stream.updates():
        stream.stop(row.row)
    assert stream.drawn == 100


async def test_tokens_lost_with_a_worker_count_once() -> None:
    first, second = PlayedWorker(), PlayedWorker()
    stream = stream_of(session_on(first, second))
    first.plays(update((0, 10), unreported=30), WorkerLostError("killed"))
    second.plays(update(unreported=4))
    async with aclosing(stream.updates()) as updates:
        await anext(updates)
        reading = asyncio.ensure_future(anext(updates))
        while not second.jobs or not second.mailbox.empty():
            await asyncio.sleep(0)
        assert stream.drawn == 10 + 4
        second.plays(update((0, 1), (1, 3)))
        await reading
    assert stream.drawn == 14


async def test_a_stream_closed_while_its_worker_is_replaced_has_drawn_what_was_told() -> None:
    worker, replacing, never = PlayedWorker(), asyncio.Event(), asyncio.Event()

    async def pick() -> PlayedWorker:
        if worker.jobs:
            replacing.set()
            await never.wait()
        return worker

    stream = stream_of(Session(1, 2, pick))  # type: ignore[arg-type]
    worker.plays(update(unreported=300), WorkerLostError("killed"))
    async with aclosing(stream.updates()) as updates:
        reading = asyncio.ensure_future(anext(updates))
        await replacing.wait()
        reading.cancel()
        await asyncio.wait([reading])
    assert stream.drawn == 300


async def test_a_stream_that_ends_has_drawn_what_it_yielded() -> None:
    worker = PlayedWorker()
    stream = stream_of(session_on(worker))
    worker.plays(update(unreported=700), update((0, 400), (1, 400), finished=True))
    assert sum([len(row.tokens) async for row in stream.updates()]) == stream.drawn == 800


async def test_a_job_that_kills_every_worker_is_not_carried_on() -> None:
    workers = [PlayedWorker() for _ in range(9)]
    for worker in workers:
        worker.plays(WorkerLostError("killed"))
    with pytest.raises(WorkerError, match="3 workers in a row"):
        await session_on(*workers).score("m", (1, 2), [(3,)])
    assert sum(len(worker.jobs) for worker in workers) == 3


async def test_tokens_that_are_lost_with_their_worker_are_no_news() -> None:
    """A token in the middle of a chunk that kills its worker is reached anew on each: nobody has the tokens before."""
    workers = [PlayedWorker() for _ in range(9)]
    for worker in workers:
        worker.plays(update(unreported=2), update(unreported=4), WorkerLostError("killed"))
    with pytest.raises(WorkerError, match="3 workers in a row"):
        [row async for row in stream_of(session_on(*workers)).updates()]
    assert sum(len(worker.jobs) for worker in workers) == 3


async def test_a_long_job_may_lose_many_workers_if_it_gets_on() -> None:
    workers = [PlayedWorker() for _ in range(9)]
    for worker in workers[:-1]:
        worker.plays(update((0, 10)), WorkerLostError("killed"))
    workers[-1].plays(update((0, 320), (1, 400), finished=True))
    stream = stream_of(session_on(*workers))
    assert [len(row.tokens) async for row in stream.updates()] == [10] * 8 + [320, 400]


async def test_scores_come_from_the_worker_that_lives() -> None:
    dead, living = PlayedWorker(), PlayedWorker()
    dead.plays(WorkerLostError("killed"))
    living.plays(ScoreResult(0, (-1.5,), 3))
    assert (await session_on(dead, living).score("m", (1, 2), [(3,)])).logprobs == (-1.5,)
