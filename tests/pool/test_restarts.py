"""Restarts: back-off of workers that die or cannot load, and one start at a time for each worker."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection

import pytest

from w2s_core.errors import ConfigurationError
from w2s_core.pool import process
from w2s_core.pool.backoff import STEADY_S, Backoff
from w2s_core.pool.pool import WorkerPool
from w2s_core.pool.specs import ModelSpec, WorkerSpec

SPEC = WorkerSpec("cpu", "float32", 1, 0, {})
CHILD = """
import sys
from multiprocessing.connection import Connection
from w2s_core.pool.messages import LoadFailed, Ready
from w2s_core.pool.specs import ModelInfo
parent = Connection(int(sys.argv[1]))
spec = parent.recv()
models = {name: ModelInfo(512, 300, frozenset(), spec.kv_cache_bytes, 1, spec.dtype) for name in spec.models}
if sys.argv[2] == "loads":
    parent.recv()
parent.send(LoadFailed("no such weights") if sys.argv[2] == "fails" else Ready(models))
if sys.argv[2] == "garbles":
    parent.send_bytes(b"no pickle")
while sys.argv[2] in ("lives", "garbles"):
    try:
        parent.recv()
    except EOFError:
        break
"""


class Clock:
    """Time that passes only by sleeping, and when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the next workers do, in order: "lives", "dies" when it has loaded, "fails" to load, "garbles" its reports.

    Or one "loads" for ever, or the next one "cannot be spawned"."""
    coming: list[str] = []

    def spawn() -> tuple[Connection, subprocess.Popen[bytes]]:
        if coming[0] == "cannot be spawned":
            coming.pop(0)
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            child = subprocess.Popen([sys.executable, "-c", CHILD, str(fd), coming.pop(0)], pass_fds=[fd])
        return Connection(ours.detach()), child

    monkeypatch.setattr(process, "_spawn", spawn)
    yield coming
    assert not coming, "a worker that should have been started was not"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def test_short_runs_double_the_delay_and_a_steady_one_resets_it() -> None:
    clock = Clock()
    backoff = Backoff(clock, clock.sleep)
    for _ in range(9):
        backoff.started()
        clock.now += STEADY_S - 1
        await backoff.wait()
    assert clock.sleeps == [0.5, 1, 2, 4, 8, 16, 30, 30], "the first start is at once"
    backoff.started()
    clock.now += STEADY_S
    await backoff.wait()
    assert len(clock.sleeps) == 8
    await backoff.wait()  # that start failed
    assert clock.sleeps[8:] == [0.5]


async def test_a_worker_that_loads_and_dies_at_once_backs_off(lives: list[str]) -> None:
    clock = Clock()
    lives += ["dies", "dies", "dies", "dies", "lives"]
    pool = WorkerPool([SPEC], backoff=lambda: Backoff(clock, clock.sleep))
    await pool.start()
    try:
        await until(lambda: not lives and pool.ready)
        assert clock.sleeps == [0.5, 1, 2]
    finally:
        await pool.stop()


async def test_a_worker_that_cannot_load_again_is_tried_one_at_a_time(lives: list[str]) -> None:
    clock = Clock()
    lives += ["lives", "fails", "fails", "fails", "lives"]
    pool = WorkerPool([SPEC], backoff=lambda: Backoff(clock, clock.sleep))
    await pool.start()
    try:
        os.kill(pool.workers[0].pid, signal.SIGKILL)
        await until(lambda: not lives and pool.ready)
        assert clock.sleeps == [0.5, 1, 2]
        await until(lambda: not pool._restarts)
    finally:
        await pool.stop()


async def test_a_worker_that_cannot_be_spawned_is_tried_again(lives: list[str]) -> None:
    """No memory or no descriptors for a moment: the place must not stay empty."""
    clock = Clock()
    lives += ["lives", "cannot be spawned", "cannot be spawned", "lives"]
    pool = WorkerPool([SPEC], backoff=lambda: Backoff(clock, clock.sleep))
    await pool.start()
    try:
        os.kill(pool.workers[0].pid, signal.SIGKILL)
        await until(lambda: not lives and pool.ready)
        assert clock.sleeps == [0.5, 1]
    finally:
        await pool.stop()


@pytest.mark.parametrize("name", ["w2s-send", "w2s-receive"])
async def test_a_process_whose_threads_cannot_be_started_is_ended(
    lives: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each attempt would leave one behind, with its models on the device."""
    spawned: list[subprocess.Popen[bytes]] = []
    spawn, start = process._spawn, threading.Thread.start

    def remember() -> tuple[Connection, subprocess.Popen[bytes]]:
        connection, child = spawn()
        spawned.append(child)
        return connection, child

    def no_thread(thread: threading.Thread) -> None:
        if thread.name == name and len(spawned) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(process, "_spawn", remember)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    lives += ["lives", "lives", "lives"]
    pool = WorkerPool([SPEC], backoff=lambda: Backoff(clock := Clock(), clock.sleep))
    await pool.start()
    try:
        os.kill(pool.workers[0].pid, signal.SIGKILL)
        await until(lambda: not lives and pool.ready)
        assert [child.poll() is None for child in spawned] == [False, False, True]
    finally:
        await pool.stop()


async def test_a_server_that_cannot_spawn_its_workers_does_not_start(lives: list[str]) -> None:
    """And stops the one that it had spawned."""
    lives += ["lives", "cannot be spawned"]
    pool = WorkerPool([SPEC, SPEC])
    with pytest.raises(ConfigurationError, match="temporarily unavailable"):
        await pool.start()
    assert not pool.workers


async def test_a_worker_whose_reports_cannot_be_read_is_replaced(lives: list[str]) -> None:
    lives += ["garbles", "lives"]
    pool = WorkerPool([SPEC])
    await pool.start()
    try:
        await until(lambda: not lives and pool.ready)
    finally:
        await pool.stop()


def test_a_socket_is_closed_if_the_process_cannot_be_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    sockets = socket.socketpair()
    monkeypatch.setattr(socket, "socketpair", lambda: sockets)
    monkeypatch.setattr(subprocess, "Popen", no_memory)
    with pytest.raises(OSError, match="allocate"):
        process._spawn()
    assert [end.fileno() for end in sockets] == [-1, -1]


async def test_the_log_says_which_worker_died_and_of_what(lives: list[str], caplog: pytest.LogCaptureFixture) -> None:
    lives += ["lives", "lives", "lives"]
    pool = WorkerPool([SPEC, SPEC])
    await pool.start()
    try:
        os.kill(victim := pool.workers[1].pid, signal.SIGKILL)
        await until(lambda: not lives and pool.ready)
        said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert said == [f"worker 1: process {victim} on cpu was lost (status -9); starting another"]
    finally:
        await pool.stop()


async def test_each_worker_has_its_own_back_off(lives: list[str]) -> None:
    clock = Clock()
    lives += ["lives", "dies", "dies", "lives"]
    pool = WorkerPool([SPEC, SPEC], backoff=lambda: Backoff(clock, clock.sleep))
    await pool.start()
    try:
        await until(lambda: not lives and pool.ready)
        assert clock.sleeps == [0.5]
        os.kill(pool.workers[0].pid, signal.SIGKILL)
        lives.append("lives")
        await until(lambda: not lives and pool.ready)
        assert clock.sleeps == [0.5], "the steady worker starts again at once"
    finally:
        await pool.stop()


async def test_one_that_cannot_load_ends_the_start_while_another_still_loads(lives: list[str]) -> None:
    lives += ["loads", "fails"]
    pool = WorkerPool([SPEC, SPEC])
    async with asyncio.timeout(60):
        with pytest.raises(ConfigurationError, match="no such weights"):
            await pool.start()
    assert not pool.workers


async def test_a_models_kv_slots_are_those_of_its_smallest_worker(lives: list[str]) -> None:
    """A request may run on any of them."""
    lives += ["lives"] * 3
    specs = [replace(SPEC, kv_cache_bytes=slots, models={"m": ModelSpec("m", False)}) for slots in (200, 90, 140)]
    pool = WorkerPool(specs)
    await pool.start()
    try:
        assert (pool.info("m").kv_slots, pool.info("m").max_length) == (90, 90)
    finally:
        await pool.stop()


@pytest.mark.parametrize("set_by_operator", [None, "7"])
def test_the_operators_environment_wins_over_the_workers_defaults(
    monkeypatch: pytest.MonkeyPatch, set_by_operator: str | None
) -> None:
    [(name, ours)] = process.WORKER_ENVIRONMENT.items()
    monkeypatch.delenv(name, raising=False)
    if set_by_operator is not None:
        monkeypatch.setenv(name, set_by_operator)
    started: list[dict[str, str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: started.append(env))
    connection, _ = process._spawn()
    connection.close()
    [environment] = started
    assert environment[name] == (ours if set_by_operator is None else set_by_operator)
    assert environment["PATH"] == os.environ["PATH"]
