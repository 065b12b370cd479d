"""One prompt's jobs on one worker. When the worker dies, the session goes on elsewhere from its answers' tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace

from w2s_core.errors import RequestError, WorkerError
from w2s_core.pool.messages import (
    CancelJob,
    CloseSession,
    JobFailed,
    JobOutcome,
    PromptJob,
    PromptResult,
    Row,
    RowUpdate,
    SampleJob,
    SampleUpdate,
    Sampling,
    ScoreJob,
    ScoreResult,
    StopRows,
    WorkerCommand,
)
from w2s_core.pool.process import WorkerLostError, WorkerProcess, next_job_id
from w2s_core.types import PromptLogprobs, Tokens

_MOST_MOVES = 5  # a job that kills every worker it meets must not go on for ever


class Session:
    """Made by `WorkerPool.session`, closed by it."""

    def __init__(self, number: int, rows: int, acquire: Callable[[], Awaitable[WorkerProcess]]) -> None:
        self.number = number
        self._rows = rows
        self._acquire = acquire
        self._worker: WorkerProcess | None = None
        self._moves = 0
        self._placing = asyncio.Lock()

    def close(self) -> None:
        """Frees what the session holds in its worker."""
        if self._worker is not None:
            self._worker.rows -= self._rows
            self._worker.send(CloseSession(self.number))
            self._worker = None

    async def score(self, model: str, prompt: Tokens, answers: Sequence[Tokens]) -> ScoreResult:
        """log p(answer | prompt) of each whole answer, in nats."""
        while True:
            job = ScoreJob(next_job_id(), self.number, model, prompt, tuple(answers))
            with suppress(WorkerLostError):
                async with aclosing(self.outcomes(job)) as outcomes:
                    outcome = await anext(outcomes)
                assert isinstance(outcome, ScoreResult)
                return outcome

    async def prompt_logprobs(self, model: str, prompt: Tokens, top: int) -> PromptLogprobs:
        """The prompt's own log-probabilities. The session must have no other job, before or after."""
        while True:
            job = PromptJob(next_job_id(), self.number, model, prompt, top)
            with suppress(WorkerLostError):
                async with aclosing(self.outcomes(job)) as outcomes:
                    outcome = await anext(outcomes)
                assert isinstance(outcome, PromptResult)
                return outcome.found

    def sample(
        self, model: str, prompt: Tokens, rows: Sequence[Row], sampling: Sampling, *, report_every: int
    ) -> SampleStream:
        """Draws these rows' tokens; iterate over the result for news of them."""

        def make_job(rows: tuple[Row, ...]) -> SampleJob:
            return SampleJob(next_job_id(), self.number, model, prompt, rows, sampling, report_every)

        return SampleStream(self, make_job, rows)

    async def outcomes(self, job: SampleJob | ScoreJob | PromptJob) -> AsyncGenerator[JobOutcome]:
        """What comes of the job; leaving early cancels it. Raises WorkerError, and RequestError where a grammar
        turns out to be too complex or the job's sequences have outgrown the KV cache.

        Raises WorkerLostError when its worker died; the session is without one then, and may be tried again.
        """
        worker = await self._placed()
        mailbox = worker.submit(job)
        done = False
        try:
            while not done:
                outcome = await mailbox.get()
                if isinstance(outcome, WorkerLostError):
                    done = True
                    self._leave(worker, outcome)
                    raise outcome
                done = not isinstance(outcome, SampleUpdate) or outcome.finished
                if isinstance(outcome, JobFailed):
                    raise _error(outcome)
                yield outcome
        finally:
            worker.forget(job.id)
            if not done:
                worker.send(CancelJob(job.id))

    def send(self, order: WorkerCommand) -> None:
        """To the worker that has the session, if any."""
        if self._worker is not None:
            self._worker.send(order)

    def _leave(self, worker: WorkerProcess, error: WorkerLostError) -> None:
        """Gives up this worker, which is dead. Raises WorkerError when that has happened too often."""
        if self._worker is not worker:
            return  # another job of the session has noticed before
        worker.rows -= self._rows
        self._worker = None
        self._moves += 1
        if self._moves > _MOST_MOVES:
            raise WorkerError(f"This request lost {self._moves} workers: {error}")

    async def _placed(self) -> WorkerProcess:
        async with self._placing:  # jobs of one session that start together must not part
            if self._worker is None:
                self._worker = await self._acquire()
                self._worker.rows += self._rows
            return self._worker


class SampleStream:
    """Rows while their tokens are drawn, wherever that happens. Rows are numbered as they were given."""

    def __init__(self, session: Session, make_job: Callable[[tuple[Row, ...]], SampleJob], rows: Sequence[Row]) -> None:
        self._session = session
        self._make_job = make_job
        self._living = dict(enumerate(rows))
        self._job = 0
        self._numbers: list[int] = []  # the job's rows, by our numbers

    def stop(self, number: int) -> None:
        """This row needs no more tokens."""
        if self._living.pop(number, None) is not None:
            self._session.send(StopRows(self._job, (self._numbers.index(number),)))

    async def news(self) -> AsyncGenerator[RowUpdate]:
        """News of the rows until none lives. Closing the iterator cancels the rest."""
        while self._living:
            self._numbers = list(self._living)
            job = self._make_job(tuple(self._living.values()))
            self._job = job.id
            with suppress(WorkerLostError):
                async with aclosing(self._session.outcomes(job)) as outcomes:
                    async for outcome in outcomes:
                        assert isinstance(outcome, SampleUpdate)
                        for news in self._accept(outcome):
                            yield news

    def _accept(self, outcome: SampleUpdate) -> Iterator[RowUpdate]:
        for news in outcome.rows:
            number = self._numbers[news.row]
            row = self._living.get(number)
            if row is None:
                continue  # stopped meanwhile
            drawn = len(news.tokens) + news.ended
            self._living[number] = replace(row, tokens=row.tokens + news.tokens, length=row.length - drawn)
            if news.done:
                del self._living[number]
            yield replace(news, row=number)


def _error(failure: JobFailed) -> Exception:
    if failure.field is not None:
        return RequestError(failure.message, failure.field)
    return WorkerError(f"The device failed this request: {failure.message}")
