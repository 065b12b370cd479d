"""Session: one prompt's jobs on one worker. If the worker dies, the session fails over to another.

Jobs are sent again with the tokens that have arrived so far, so that nothing is lost and the same tokens are drawn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from w2s_core.errors import RequestError, WorkerError
from w2s_core.pool.messages import (
    CancelJob,
    CloseSession,
    Expert,
    JobFailed,
    JobOutcome,
    PromptJob,
    PromptResult,
    RewardJob,
    RewardResult,
    Row,
    RowUpdate,
    SampleJob,
    SampleUpdate,
    Sampling,
    ScoreJob,
    ScoreResult,
    StopRows,
    TokenJob,
    WorkerCommand,
)
from w2s_core.pool.process import WorkerLostError, WorkerProcess, next_job_id
from w2s_core.types import PromptLogprobs, Tokens

R = TypeVar("R", ScoreResult, RewardResult, PromptResult)
_MAX_FAIL_OVERS = 2  # without news in between: a job that kills every worker it runs on must not go through them all


class Session:
    """One prompt's jobs on one worker. `WorkerPool.session` opens and closes it.

    `pick_worker` is awaited for a worker before the first job and after each fail-over. `rows` counts towards that
    worker's load.
    """

    def __init__(self, session_id: int, rows: int, pick_worker: Callable[[], Awaitable[WorkerProcess]]) -> None:
        self.id = session_id
        self._rows = rows
        self._pick_worker = pick_worker
        self._worker: WorkerProcess | None = None
        self._fail_overs = 0  # since the last outcome that survives its worker
        self._binding = asyncio.Lock()

    def close(self) -> None:
        """Frees what the session holds in its worker."""
        if self._worker is not None:
            self._worker.rows -= self._rows
            self._worker.send(CloseSession(self.id))
            self._worker = None

    async def score(self, model: str, prompt: Tokens, answers: Sequence[Tokens]) -> ScoreResult:
        """log p(answer | prompt) of each whole answer, in nats."""
        make_job = partial(ScoreJob, session=self.id, model=model, prompt=prompt, answers=tuple(answers))
        return await self._result(make_job, ScoreResult)

    async def rewards(self, model: str, prompt: Tokens, answers: Sequence[Tokens]) -> RewardResult:
        """A reward model's reward of the prompt and each whole answer."""
        make_job = partial(RewardJob, session=self.id, model=model, prompt=prompt, answers=tuple(answers))
        return await self._result(make_job, RewardResult)

    async def prompt_logprobs(self, model: str, prompt: Tokens, top: int) -> PromptLogprobs:
        """The log-probabilities of the prompt's own tokens. It must be the session's only job."""
        make_job = partial(PromptJob, session=self.id, model=model, prompt=prompt, top=top)
        return (await self._result(make_job, PromptResult)).logprobs

    def sample(
        self,
        model: str,
        prompt: Tokens,
        rows: Sequence[Row],
        sampling: Sampling,
        *,
        report_every: int,
        experts: tuple[Expert, ...] = (),
    ) -> SampleStream:
        """Samples these rows. Iterate over the stream's `updates` for their tokens."""

        def make_job(rows: tuple[Row, ...]) -> SampleJob:
            return SampleJob(next_job_id(), self.id, model, prompt, rows, sampling, report_every, experts)

        return SampleStream(self, make_job, rows)

    async def outcomes(
        self, job: TokenJob, unread: list[JobOutcome | WorkerLostError] | None = None
    ) -> AsyncGenerator[JobOutcome]:
        """Runs the job on the session's worker and yields its outcomes. Closing the generator early cancels the job.

        Those that have arrived by then are added to `unread`.

        Raises WorkerError if the job fails, and RequestError if the request is the reason: its grammar is too complex,
        or its sequences have outgrown the KV cache. Raises WorkerLostError when the worker died; the caller may run
        the job again, on another worker.
        """
        worker = await self._bind_worker()
        mailbox = worker.submit(job)
        done = False
        try:
            while not done:
                outcome = await mailbox.get()
                if isinstance(outcome, WorkerLostError):
                    done = True
                    self._fail_over(worker, outcome)
                    raise outcome
                if not isinstance(outcome, SampleUpdate) or outcome.rows:  # what is unreported is lost with the worker
                    self._fail_overs = 0
                done = not isinstance(outcome, SampleUpdate) or outcome.finished
                if isinstance(outcome, JobFailed):
                    raise _error(outcome)
                yield outcome
        finally:
            worker.close_mailbox(job.id)
            if not done:
                worker.send(CancelJob(job.id))
            while unread is not None and not mailbox.empty():
                unread.append(mailbox.get_nowait())

    async def _result(self, make_job: Callable[[int], TokenJob], kind: type[R]) -> R:
        """The only outcome of a job that samples nothing. `make_job` makes it of an id, anew for every fail-over."""
        while True:
            with suppress(WorkerLostError):
                async with aclosing(self.outcomes(make_job(next_job_id()))) as outcomes:
                    outcome = await anext(outcomes)
                assert isinstance(outcome, kind)
                return outcome

    def send(self, command: WorkerCommand) -> None:
        """Sends a command to the session's worker, if it has one."""
        if self._worker is not None:
            self._worker.send(command)

    def _fail_over(self, worker: WorkerProcess, error: WorkerLostError) -> None:
        """Detaches the session from its dead worker, so that its next job picks another.

        Raises WorkerError when that has happened too often.
        """
        if self._worker is not worker:
            return  # another job of the session has noticed before
        worker.rows -= self._rows
        self._worker = None
        self._fail_overs += 1
        if self._fail_overs > _MAX_FAIL_OVERS:
            raise WorkerError(f"This request lost {self._fail_overs} workers in a row: {error}")

    async def _bind_worker(self) -> WorkerProcess:
        """The session's worker, picked now if it has none."""
        async with self._binding:  # jobs of one session that start together must go to the same worker
            if self._worker is None:
                self._worker = await self._pick_worker()
                self._worker.rows += self._rows
            return self._worker


class SampleStream:
    """The updates of rows while they are sampled, across fail-overs. Rows are numbered in the order given.

    `drawn` is the number of tokens that were drawn, of which the last may be in no update yet: a stream that is closed
    early has cost them too. Those that were lost with a worker are drawn again and count once. `cached_tokens`: see
    `SampleUpdate`; None before the first update.
    """

    def __init__(self, session: Session, make_job: Callable[[tuple[Row, ...]], SampleJob], rows: Sequence[Row]) -> None:
        self._session = session
        self._make_job = make_job
        self._live_rows = dict(enumerate(rows))  # with the tokens that have arrived
        self._job_id = 0
        self._row_numbers: list[int] = []  # of the current job's rows
        self.cached_tokens: int | None = None
        self._reported = 0  # tokens in updates
        self._unreported = 0

    @property
    def drawn(self) -> int:
        return self._reported + self._unreported

    def stop(self, row: int) -> None:
        """Ends this row: it needs no more tokens."""
        if self._live_rows.pop(row, None) is not None:
            self._session.send(StopRows(self._job_id, (self._row_numbers.index(row),)))

    async def updates(self) -> AsyncGenerator[RowUpdate]:
        """The rows' updates until all rows are done. Closing the generator cancels the rest."""
        while self._live_rows:
            self._row_numbers = list(self._live_rows)
            job = self._make_job(tuple(self._live_rows.values()))
            self._job_id = job.id
            unread: list[JobOutcome | WorkerLostError] = []
            try:
                async with aclosing(self._session.outcomes(job, unread)) as outcomes:
                    async for outcome in outcomes:
                        assert isinstance(outcome, SampleUpdate)
                        for update in self._apply(outcome):
                            yield update
            except WorkerLostError:
                pass  # what it told counts until the next worker tells how much it has drawn anew
            finally:
                for late in unread:
                    if isinstance(late, SampleUpdate):
                        self._apply(late)

    def _apply(self, outcome: SampleUpdate) -> list[RowUpdate]:
        """Adds new tokens to the live rows. Returns the updates of rows not stopped meanwhile, with the stream's row
        numbers."""
        self._unreported = outcome.unreported
        if self.cached_tokens is None:
            self.cached_tokens = outcome.cached_tokens
        updates: list[RowUpdate] = []
        for update in outcome.rows:
            number = self._row_numbers[update.row]
            row = self._live_rows.get(number)
            drawn = len(update.tokens) + update.ended
            self._reported += drawn  # also for a row that was stopped meanwhile: a slow reader stops it late
            if row is None:
                continue
            self._live_rows[number] = replace(row, tokens=row.tokens + update.tokens, length=row.length - drawn)
            if update.done:
                del self._live_rows[number]
            updates.append(replace(update, row=number))
        return updates


def _error(failure: JobFailed) -> Exception:
    if failure.field is not None:
        return RequestError(failure.message, failure.field)
    return WorkerError(f"The device failed this request: {failure.message}")
