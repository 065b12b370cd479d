"""The worker processes: where sessions go, and what happens when one dies. Imports no torch."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial

from w2s_core.errors import ConfigurationError, UnavailableError, WorkerError
from w2s_core.pool.backoff import Backoff
from w2s_core.pool.messages import InspectJob, JobFailed, ModelInfo, Pong, WorkerSpec, WorkerState
from w2s_core.pool.process import WorkerLostError, WorkerProcess, next_job_id
from w2s_core.pool.session import Session
from w2s_core.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)
_WAIT_FOR_WORKER_S = 60.0  # how long a search whose worker died waits for another one
_RETRY_AFTER_S = 5
_LOOKS = 4  # at a worker's heartbeat, at least, within the time that it may be silent
_LOOK_S = 1.0  # and at least so often, for the metrics that a Pong brings


class WorkerPool:
    """One process per spec. Sessions go to the worker with the fewest rows; a dead worker is started again.

    A worker that gives no sign of life for `silence_s` seconds is killed, and its sessions go on elsewhere. Every place
    has a `backoff` of its own, so that one that keeps dying does not keep the machine busy with loading.
    """

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        silence_s: float = 60.0,
        backoff: Callable[[], Backoff] = Backoff,
        metrics: Metrics | None = None,
    ) -> None:
        self._specs = specs
        self._silence_s = silence_s
        self._metrics = metrics or Metrics()
        self._backoffs = [backoff() for _ in specs]
        self._watch: asyncio.Task[None] | None = None
        self._workers: list[WorkerProcess] = []
        self._sessions = itertools.count(1)
        self._restarts: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()

    @property
    def workers(self) -> Sequence[WorkerProcess]:
        return self._workers

    @property
    def ready(self) -> bool:
        return bool(self._workers) and all(self._alive_with(spec.models) for spec in self._specs)

    def info(self, model: str) -> ModelInfo:
        """What loading this model told, on the worker with the least room for it. Only after `start`."""
        known = [worker.models[model] for worker in self._workers if model in worker.models]
        return min(known, key=lambda info: info.kv_slots)

    async def start(self) -> None:
        """Loads every model on every worker. Raises ConfigurationError when one cannot be loaded."""
        self._workers = [self._spawn(place) for place in range(len(self._specs))]
        for place in range(len(self._specs)):
            self._metrics.worker_added(str(place))
        try:
            for worker, backoff in zip(self._workers, self._backoffs, strict=True):
                await worker.started()
                backoff.started()
        except WorkerLostError as error:
            await self.stop()
            raise ConfigurationError(f"The models cannot be loaded: {error}") from None
        except asyncio.CancelledError:
            await self.stop()
            raise
        self._watch = asyncio.create_task(self._keep_watch())
        for worker in self._workers:
            for name, info in worker.models.items():
                if info.kv_slots < info.context_length:
                    room = f"{info.kv_slots} tokens of its context of {info.context_length}"
                    _log.warning("%s: the KV cache on %s holds only %s", name, worker.spec.device, room)

    async def stop(self) -> None:
        tasks = [*self._restarts, *([self._watch] if self._watch else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        stopping, self._workers = self._workers, []
        async with self._changed:
            self._changed.notify_all()  # nobody needs to wait any longer
        for worker in stopping:
            await worker.stop()

    @asynccontextmanager
    async def session(self, rows: int, models: Collection[str]) -> AsyncIterator[Session]:
        """A place for one prompt's jobs on a worker that has these models; `rows` weigh in its choice."""
        session = Session(next(self._sessions), rows, partial(self.acquire, models))
        try:
            yield session
        finally:
            session.close()

    async def acquire(self, models: Collection[str]) -> WorkerProcess:
        """The least loaded living worker that has these models; waits for one to come back.

        Raises UnavailableError when none does.
        """
        try:
            async with asyncio.timeout(_WAIT_FOR_WORKER_S), self._changed:
                await self._changed.wait_for(lambda: self._alive_with(models) or not self._workers)
        except TimeoutError:
            raise UnavailableError("No worker is alive.", _RETRY_AFTER_S) from None
        if not self._workers:
            raise UnavailableError("The workers are stopped.", _RETRY_AFTER_S)
        return min(self._alive_with(models), key=lambda worker: worker.rows)

    def _alive_with(self, models: Collection[str]) -> list[WorkerProcess]:
        return [worker for worker in self._workers if worker.alive and worker.models.keys() >= set(models)]

    async def _keep_watch(self) -> None:
        while True:
            for worker in self._workers:
                worker.check(self._silence_s)
            await asyncio.sleep(min(_LOOK_S, self._silence_s / _LOOKS))

    async def inspect(self) -> list[WorkerState]:
        """Each worker's state, after its caches' integrity was checked. Raises WorkerError where it does not hold."""
        states = []
        for worker in self._workers:
            job = InspectJob(next_job_id())
            outcome = await worker.submit(job).get()
            worker.forget(job.id)
            if isinstance(outcome, WorkerLostError | JobFailed):
                raise WorkerError(str(outcome))
            assert isinstance(outcome, WorkerState)
            states.append(outcome)
        return states

    def _spawn(self, place: int) -> WorkerProcess:
        def note(pong: Pong) -> None:
            self._metrics.worker_reported(str(place), pong.kv_usage, pong.steps)

        return WorkerProcess(self._specs[place], partial(self._lost, place), note, str(place))

    def _lost(self, place: int, worker: WorkerProcess) -> None:
        died = f"{worker.pid} on {worker.spec.device} was lost (status {worker.status})"
        _log.error("worker %d: process %s; another is to be started", place, died)
        task = asyncio.get_running_loop().create_task(self._restart(place))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _restart(self, place: int) -> None:
        backoff = self._backoffs[place]
        while True:
            await backoff.wait()
            self._metrics.worker_restarted(str(place))
            worker = self._spawn(place)
            try:
                await worker.started()
            except WorkerLostError as error:
                _log.error("a worker could not be restarted: %s", error)
                continue
            except asyncio.CancelledError:
                await worker.stop()
                raise
            backoff.started()
            self._workers[place] = worker
            async with self._changed:
                self._changed.notify_all()
            return
