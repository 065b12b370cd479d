"""One worker process as the parent sees it: commands go out and reports come in without blocking the event loop.

Two threads do the blocking I/O: one sends the commands of an outbox, the other receives reports and hands them to the
event loop, which puts a job's outcomes into the job's mailbox.
"""

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
from queue import Empty, SimpleQueue
from typing import TypeVar

from w2s_core.errors import UnsupportedModelError, W2SError
from w2s_core.pool.heartbeat import Heartbeat
from w2s_core.pool.messages import Job, JobOutcome, LoadFailed, Ping, Pong, Ready, WorkerCommand, WorkerReport
from w2s_core.pool.specs import ModelInfo, WorkerSpec
from w2s_core.pool.stderr import StderrRelay, stderr_is_terminal

T = TypeVar("T")
_log = logging.getLogger(__name__)
_STOP_TIMEOUT_S = 5.0
WORKER_MODULE = "w2s_core.worker.main"  # of a worker process, as `python -m` takes it
# How many rounds an OpenMP thread spins before it sleeps. By default it spins for ever, and threads starve each other
# as soon as anything else runs on the machine: a decode step of 16 rows then took 990 ms instead of 70. Not spinning at
# all takes 1.4 times as long on an idle machine. This many rounds cost nothing there, and a step takes 330 ms on a busy
# one. An operator's own setting wins.
WORKER_ENVIRONMENT = {"GOMP_SPINCOUNT": "20000"}
_job_ids = itertools.count(1)


class WorkerLostError(W2SError):
    """The worker process has ended. Its jobs may be run again on another worker."""


def next_job_id() -> int:
    """A job id that is unique in this process."""
    return next(_job_ids)


class WorkerProcess:
    """One worker process, called `name` in the log.

    `on_lost` is called once, in the event loop, if the process ends without having been stopped; `on_pong` is called
    for every Pong.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        heartbeat: Heartbeat,
        on_lost: Callable[[WorkerProcess], None],
        on_pong: Callable[[Pong], None] = lambda _: None,
        name: str = "0",
    ) -> None:
        self.spec = spec
        self._name = name
        self.models: Mapping[str, ModelInfo] = {}
        self.rows = 0  # of the sessions it has, for load balancing
        self._heartbeat = heartbeat
        self._on_lost = on_lost
        self._on_pong = on_pong
        self._mailboxes: dict[int, asyncio.Queue[JobOutcome | WorkerLostError]] = {}  # by job id
        self._outbox: SimpleQueue[WorkerCommand | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[Mapping[str, ModelInfo]] = self._loop.create_future()
        self._loaded = False
        self._stopping = False
        self._connection, self._process = _spawn()
        with contextlib.ExitStack() as on_error:  # no thread can be started: the process must not stay without a parent
            on_error.callback(self._process.wait)
            on_error.callback(self._process.kill)
            on_error.callback(self._outbox.put, None)
            self._start_threads()
            on_error.pop_all()

    def _start_threads(self) -> None:
        self._stderr = StderrRelay(self._name, self._process.stderr) if self._process.stderr else None
        self._sender = threading.Thread(target=self._send_commands, daemon=True, name="w2s-send")
        self._sender.start()
        threading.Thread(target=self._receive_reports, daemon=True, name="w2s-receive").start()

    @property
    def alive(self) -> bool:
        """Whether its models are loaded and it runs. Polls the process, whose death may not have been reported yet."""
        return self._loaded and not self._stopping and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """The exit code, or minus the number of the signal that killed it; None while it runs."""
        return self._process.poll()

    async def wait_ready(self) -> None:
        """Returns when the models are loaded.

        Raises WorkerLostError with the worker's reason when they cannot be, UnsupportedModelError when not here.
        """
        self.models = await asyncio.shield(self._ready)
        self._loaded = True

    def submit(self, job: Job) -> asyncio.Queue[JobOutcome | WorkerLostError]:
        """Sends the job. Its outcomes arrive in the returned mailbox until `close_mailbox`."""
        mailbox = self._mailboxes[job.id] = asyncio.Queue()
        self.send(job)
        if not self.alive:
            mailbox.put_nowait(WorkerLostError("The worker process has ended."))
        return mailbox

    def close_mailbox(self, job_id: int) -> None:
        """Drops outcomes of this job from now on."""
        self._mailboxes.pop(job_id, None)

    def send(self, command: WorkerCommand) -> None:
        self._outbox.put(command)

    def check_heartbeat(self) -> None:
        """Kills the worker if its heartbeat has timed out. Sends a Ping unless one is unanswered."""
        if self._heartbeat.check() and self.alive:
            timeout_s = self._heartbeat.timeout_s
            _log.error(
                "worker %s: process %d has been silent for %.0f s and is killed", self._name, self.pid, timeout_s
            )
            self._process.kill()
        if not self._heartbeat.awaiting_pong:
            self._heartbeat.ping_sent()
            self.send(Ping())

    async def stop(self) -> None:
        """Ends the process: SIGTERM, then SIGKILL if it does not end in time."""
        self._stopping = True
        self._process.terminate()
        await asyncio.to_thread(self._wait_or_kill)
        self._fail_pending(WorkerLostError("The worker was stopped."))

    def _wait_or_kill(self) -> None:
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    # The two threads.

    def _send_commands(self) -> None:
        """Sends the spec, then the commands, all that wait in one message: jobs that belong together start together."""
        with contextlib.suppress(OSError):
            self._connection.send(self.spec)
            while None not in (commands := take_all(self._outbox)):
                self._connection.send(commands)

    def _receive_reports(self) -> None:
        try:
            while True:
                self._call_in_loop(self._deliver, self._connection.recv())
        except (EOFError, OSError):
            pass  # the process has ended
        except Exception:  # a report that cannot be read: what it held is lost, so the worker is
            _log.exception("worker %s: process %d is killed", self._name, self.pid)
            self._process.kill()
        self._outbox.put(None)
        self._sender.join()
        self._connection.close()  # only when both threads are done with it: another socket may get its number
        exit_status = self._process.wait()
        if self._stderr is not None:
            self._stderr.finish()
        self._call_in_loop(self._on_exit, exit_status)

    def _call_in_loop(self, callback: Callable[..., None], argument: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits for the call
            self._loop.call_soon_threadsafe(callback, argument)

    # In the event loop.

    def _deliver(self, report: WorkerReport) -> None:
        self._heartbeat.report_received()
        match report:
            case Ready():
                self._ready.set_result(report.models)
            case LoadFailed():
                failed = UnsupportedModelError if report.unsupported else WorkerLostError
                self._ready.set_exception(failed(report.message))
            case Pong():
                self._heartbeat.pong_received()
                self._on_pong(report)
            case _:
                mailbox = self._mailboxes.get(report.id)
                if mailbox is not None:
                    mailbox.put_nowait(report)

    def _on_exit(self, status: int) -> None:
        was_ready = self._ready.done() and self._ready.exception() is None
        # The worker's last lines are for the operator. Clients hear of the loss of a worker that was ready, and must
        # not see them.
        last_lines = self._stderr.last_lines if self._stderr and not was_ready else ()
        reason = "\n  ".join([f"The worker process ended with status {status}.", *last_lines])
        self._fail_pending(WorkerLostError(reason))
        if was_ready and not self._stopping:  # else `wait_ready` has raised already
            self._on_lost(self)

    def _fail_pending(self, error: WorkerLostError) -> None:
        """Gives the error to everything that waits for this worker: its start and its jobs."""
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # marks it as retrieved: the start may have been given up
        for mailbox in self._mailboxes.values():
            mailbox.put_nowait(error)
        self._mailboxes.clear()


def take_all(queue: SimpleQueue[T]) -> list[T]:
    """Waits for an item of the queue, then takes all that are in it."""
    items = [queue.get()]
    with contextlib.suppress(Empty):
        while True:
            items.append(queue.get_nowait())
    return items


def _spawn() -> tuple[Connection, subprocess.Popen[bytes]]:
    """Starts a worker process. Returns the parent's end of the socket to it."""
    ours, theirs = socket.socketpair()
    with theirs, contextlib.ExitStack() as on_error:
        on_error.callback(ours.close)
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", WORKER_MODULE, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stderr=None if stderr_is_terminal() else subprocess.PIPE,
            env=WORKER_ENVIRONMENT | os.environ,
            start_new_session=True,  # Ctrl-C is for the parent, which stops its workers in order
        )
        on_error.pop_all()
    return Connection(ours.detach()), process
