"""Worker pool: starts, watches and restarts the worker processes, and picks a worker for each session."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial

from w2s_core.aio import gather_all
from w2s_core.errors import ConfigurationError, UnavailableError, UnsupportedModelError, WorkerError
from w2s_core.pool.backoff import Backoff
from w2s_core.pool.heartbeat import Heartbeat, check_interval_s
from w2s_core.pool.messages import InspectJob, JobFailed, Pong, WorkerState
from w2s_core.pool.process import WorkerLostError, WorkerProcess, next_job_id
from w2s_core.pool.session import Session
from w2s_core.pool.specs import ModelInfo, WorkerSpec
from w2s_core.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)
_WAIT_FOR_WORKER_S = 60.0  # how long a session whose worker died waits for another one
_RETRY_AFTER_S = 5


class WorkerPool:
    """One worker process per spec. A session goes to the worker with the fewest rows.

    A worker that dies is restarted after its back-off, and its sessions fail over to another worker. A worker that
    misses its heartbeat for `heartbeat_timeout_s` seconds is killed, hence restarted too.
    """

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        heartbeat_timeout_s: float = 60.0,
        backoff: Callable[[], Backoff] = Backoff,
        metrics: Metrics | None = None,
    ) -> None:
        self._specs = specs
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._metrics = metrics or Metrics()
        self._backoffs = [backoff() for _ in specs]
        self._heartbeat_task: asyncio.Task[None] | None = None
        self._workers: list[WorkerProcess] = []  # by index into the specs
        self._session_ids = itertools.count(1)
        self._restarts: set[asyncio.Task[None]] = set()
        self._workers_changed = asyncio.Condition()

    @property
    def workers(self) -> Sequence[WorkerProcess]:
        return self._workers

    @property
    def ready(self) -> bool:
        """Whether for every spec some living worker has its models."""
        return bool(self._workers) and all(self._alive_with(spec.models) for spec in self._specs)

    def info(self, model: str) -> ModelInfo:
        """The model's properties, on the worker with the fewest KV slots for it. Only after `start`."""
        infos = [worker.models[model] for worker in self._workers if model in worker.models]
        return min(infos, key=lambda info: info.kv_slots)

    async def start(self) -> None:
        """Loads every model on every worker.

        Raises ConfigurationError when one cannot be loaded, UnsupportedModelError when not here.
        """
        try:
            for index in range(len(self._specs)):
                self._workers.append(self._spawn(index))
                self._metrics.worker_added(str(index))
            # The first that cannot load says so at once, however long the others take.
            await gather_all([worker.wait_ready() for worker in self._workers])
            for backoff in self._backoffs:
                backoff.started()
        except (WorkerLostError, OSError) as error:
            await self.stop()
            raise ConfigurationError(str(error)) from None
        except (UnsupportedModelError, asyncio.CancelledError):
            await self.stop()
            raise
        self._heartbeat_task = asyncio.create_task(self._check_heartbeats())
        self._warn_of_small_caches()

    def _warn_of_small_caches(self) -> None:
        for worker in self._workers:
            for name, info in worker.models.items():
                if info.kv_slots < info.context_length:
                    tokens = f"{info.kv_slots} tokens of its context of {info.context_length}"
                    _log.warning("%s: the KV cache on %s holds only %s", name, worker.spec.device, tokens)

    async def stop(self) -> None:
        """Stops all workers. Sessions that wait for a worker get UnavailableError."""
        tasks = [*self._restarts, *([self._heartbeat_task] if self._heartbeat_task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        stopping, self._workers = self._workers, []
        async with self._workers_changed:
            self._workers_changed.notify_all()
        for worker in stopping:
            await worker.stop()

    @asynccontextmanager
    async def session(self, rows: int, models: Collection[str]) -> AsyncIterator[Session]:
        """Opens a session on a worker that has these models. `rows` is its weight in load balancing."""
        session = Session(next(self._session_ids), rows, partial(self.pick_worker, models))
        try:
            yield session
        finally:
            session.close()

    async def pick_worker(self, models: Collection[str]) -> WorkerProcess:
        """The living worker with these models that has the fewest rows. Waits for a restart if there is none.

        Raises UnavailableError when none comes back in time.
        """
        try:
            async with asyncio.timeout(_WAIT_FOR_WORKER_S), self._workers_changed:
                await self._workers_changed.wait_for(lambda: self._alive_with(models) or not self._workers)
        except TimeoutError:
            raise UnavailableError("No worker is alive.", _RETRY_AFTER_S) from None
        if not self._workers:
            raise UnavailableError("The workers are stopped.", _RETRY_AFTER_S)
        return min(self._alive_with(models), key=lambda worker: worker.rows)

    def _alive_with(self, models: Collection[str]) -> list[WorkerProcess]:
        return [worker for worker in self._workers if worker.alive and worker.models.keys() >= set(models)]

    async def _check_heartbeats(self) -> None:
        interval_s = check_interval_s(self._heartbeat_timeout_s)
        while True:
            for worker in self._workers:
                worker.check_heartbeat()
            await asyncio.sleep(interval_s)

    async def inspect(self) -> list[WorkerState]:
        """Each worker's state, after it has checked the integrity of its caches.

        Raises WorkerError when a worker is lost or a check fails.
        """
        states = []
        for worker in self._workers:
            job = InspectJob(next_job_id())
            outcome = await worker.submit(job).get()
            worker.close_mailbox(job.id)
            if isinstance(outcome, WorkerLostError | JobFailed):
                raise WorkerError(str(outcome))
            assert isinstance(outcome, WorkerState)
            states.append(outcome)
        return states

    def _spawn(self, index: int) -> WorkerProcess:
        def record_pong(pong: Pong) -> None:
            self._metrics.worker_reported(str(index), pong.kv_usage, pong.steps)

        heartbeat = Heartbeat(self._heartbeat_timeout_s)
        return WorkerProcess(
            self._specs[index], heartbeat, partial(self._on_worker_lost, index), record_pong, str(index)
        )

    def _on_worker_lost(self, index: int, worker: WorkerProcess) -> None:
        lost = f"{worker.pid} on {worker.spec.device} was lost (status {worker.exit_status})"
        _log.error("worker %d: process %s; starting another", index, lost)
        task = asyncio.get_running_loop().create_task(self._restart(index))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _start_worker(self, index: int) -> WorkerProcess:
        """A new worker that is ready. Raises WorkerLostError if it ends before that, OSError if none can be spawned."""
        worker = self._spawn(index)
        try:
            await worker.wait_ready()
        except asyncio.CancelledError:
            await worker.stop()
            raise
        return worker

    async def _restart(self, index: int) -> None:
        """Starts workers, with back-off, until one is ready."""

        async def start() -> WorkerProcess:
            self._metrics.worker_restarted(str(index))
            return await self._start_worker(index)

        self._workers[index] = await self._backoffs[index].restart(f"worker {index}", start)
        async with self._workers_changed:
            self._workers_changed.notify_all()
