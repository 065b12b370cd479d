"""The parent's end of one worker process: orders go out and reports come in without ever blocking the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from queue import SimpleQueue

from w2s_core.errors import W2SError
from w2s_core.pool.messages import (
    Job,
    JobOutcome,
    LoadFailed,
    ModelInfo,
    Ping,
    Pong,
    Ready,
    WorkerCommand,
    WorkerReport,
    WorkerSpec,
)
from w2s_core.pool.stderr import StderrRelay, shown_as_it_is

_log = logging.getLogger(__name__)
_STOP_TIMEOUT_S = 5.0
# How long an OpenMP thread spins before it sleeps. For ever (the default), and threads starve each other as soon as
# anything else runs on the machine: a decode step of 16 rows then took 990 ms instead of 70. Not at all costs 1.4 times
# on an idle one. This many rounds cost nothing idle, and 330 ms crowded. An operator's own setting wins.
WORKER_ENVIRONMENT = {"GOMP_SPINCOUNT": "20000"}
_job_ids = itertools.count(1)


class WorkerLostError(W2SError):
    """The process ended; whoever waits for it may try elsewhere."""


def next_job_id() -> int:
    """Unique in this process."""
    return next(_job_ids)


class WorkerProcess:
    """One process, called `name` in the log. `on_lost` is called once, in the event loop, when it ends without having
    been asked to; `on_pong` at every Pong."""

    def __init__(
        self,
        spec: WorkerSpec,
        on_lost: Callable[[WorkerProcess], None],
        on_pong: Callable[[Pong], None] = lambda _: None,
        name: str = "0",
    ) -> None:
        self.spec = spec
        self.models: Mapping[str, ModelInfo] = {}
        self.rows = 0  # of the jobs it has, for placement
        self._on_lost = on_lost
        self._on_pong = on_pong
        self._asked = False  # for a Pong that has not come yet
        self._mailboxes: dict[int, asyncio.Queue[JobOutcome | WorkerLostError]] = {}
        self._outbox: SimpleQueue[WorkerCommand | WorkerSpec | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[Mapping[str, ModelInfo]] = self._loop.create_future()
        self._loaded = False
        self._stopping = False
        self._heard = self._loop.time()
        self._connection, self._process = _spawn()
        self._relay = StderrRelay(name, self._process.stderr) if self._process.stderr else None
        self._outbox.put(spec)
        self._sender = threading.Thread(target=self._send, daemon=True, name="w2s-send")
        self._sender.start()
        threading.Thread(target=self._receive, daemon=True, name="w2s-receive").start()

    @property
    def alive(self) -> bool:
        """Its models are loaded and it runs. Asks the process itself: news of a death may still be on its way."""
        return self._loaded and not self._stopping and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """How it ended: an exit code, or less than 0 the number of a signal; None while it runs."""
        return self._process.poll()

    async def started(self) -> None:
        """Returns when the models are loaded. Raises WorkerLostError with the worker's reason when they cannot be."""
        self.models = await asyncio.shield(self._started)
        self._heard = self._loop.time()
        self._loaded = True

    def submit(self, job: Job) -> asyncio.Queue[JobOutcome | WorkerLostError]:
        """Sends the job; its outcomes arrive in the queue that is returned, until `forget`."""
        mailbox = self._mailboxes[job.id] = asyncio.Queue()
        self.send(job)
        if not self.alive:
            mailbox.put_nowait(WorkerLostError("The worker process has ended."))
        return mailbox

    def forget(self, job_id: int) -> None:
        """Outcomes of this job are of no interest any more."""
        self._mailboxes.pop(job_id, None)

    def send(self, order: WorkerCommand) -> None:
        self._outbox.put(order)

    def check(self, silence_s: float) -> None:
        """Asks for a sign of life; kills a worker that has given none for `silence_s` seconds."""
        if self.alive and self._loop.time() - self._heard > silence_s:
            _log.error("worker %d has been silent for %.0f s and is killed", self.pid, silence_s)
            self._process.kill()
        if not self._asked:  # else a worker that is busy for long would get a heap of them
            self._asked = True
            self.send(Ping())

    async def stop(self) -> None:
        """Ends the process: politely, then not."""
        self._stopping = True
        self._process.terminate()
        await asyncio.to_thread(self._reap)
        self._lose(WorkerLostError("The worker was stopped."))

    def _reap(self) -> None:
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    # The two threads.

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while (order := self._outbox.get()) is not None:
                self._connection.send(order)

    def _receive(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._to_loop(self._deliver, self._connection.recv())
        self._outbox.put(None)
        self._sender.join()
        self._connection.close()  # not before both threads are done with it: another socket may get its number
        code = self._process.wait()
        if self._relay is not None:
            self._relay.finish()
        self._to_loop(self._ended, code)

    def _to_loop(self, callback: Callable[..., None], argument: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(callback, argument)

    # In the event loop.

    def _deliver(self, report: WorkerReport) -> None:
        self._heard = self._loop.time()
        match report:
            case Ready():
                self._started.set_result(report.models)
            case LoadFailed():
                self._started.set_exception(WorkerLostError(report.message))
            case Pong():
                self._asked = False
                self._on_pong(report)
            case _:
                mailbox = self._mailboxes.get(report.id)
                if mailbox is not None:
                    mailbox.put_nowait(report)

    def _ended(self, code: int) -> None:
        was_ready = self._started.done() and self._started.exception() is None
        # What it said is for the operator: not for clients, who may hear of the loss of a worker that was ready.
        said = self._relay.last if self._relay and not was_ready else ()
        self._lose(WorkerLostError("\n  ".join([f"The worker process ended with status {code}.", *said])))
        if was_ready and not self._stopping:  # else whoever waits for its start knows already
            self._on_lost(self)

    def _lose(self, error: WorkerLostError) -> None:
        if not self._started.done():
            self._started.set_exception(error)
            self._started.exception()  # seen: somebody may have stopped waiting for the start
        for mailbox in self._mailboxes.values():
            mailbox.put_nowait(error)
        self._mailboxes.clear()


def _spawn() -> tuple[Connection, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "w2s_core.worker.main", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stderr=None if shown_as_it_is() else subprocess.PIPE,
            env=WORKER_ENVIRONMENT | os.environ,
            start_new_session=True,  # Ctrl-C is for the parent, which stops its workers in order
        )
    return Connection(ours.detach()), process
