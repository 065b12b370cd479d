"""Worker stderr: lines in the log, at a limited rate, and the worker never waits for a reader."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pool.test_restarts import SPEC, Clock, until
from w2s_core.errors import ConfigurationError
from w2s_core.pool import stderr
from w2s_core.pool.backoff import Backoff
from w2s_core.pool.pool import WorkerPool
from w2s_core.pool.stderr import Line, LineSplitter, StderrRelay

# `python -X faulthandler -m w2s_core.worker.main FD`, but with what a test has for it in place of models.
WORKER = """#!/bin/sh
exec {python} -c '
import os, sys
from multiprocessing.connection import Connection
from w2s_core.pool.messages import Ready
parent = Connection(int(sys.argv[1]))
parent.recv()
def say(text):
    os.write(2, text.encode())
def serve():
    parent.send(Ready({{}}))
    try:
        while True:
            parent.recv()
    except EOFError:
        pass
{body}
' "$5"
"""


def lines(*chunks: bytes) -> list[Line]:
    splitter = LineSplitter()
    return [line for chunk in chunks for line in splitter.feed(chunk)] + list(splitter.end())


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "w2s.worker"]


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    """The program that stands for Python in new workers."""
    caplog.set_level(logging.INFO, "w2s.worker")
    path = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.setattr(stderr, "_JOIN_TIMEOUT_S", 60.0)
    monkeypatch.setattr("w2s_core.pool.process.stderr_is_terminal", lambda: False)
    return path


PYTHON = sys.executable


def does(path: Path, body: str) -> None:
    path.write_text(WORKER.format(python=PYTHON, body=body))
    path.chmod(0o755)


def test_lines_are_cut_wherever_they_are_read() -> None:
    assert lines(b"one\ntw", b"o\r\n\n  \nthree") == [Line("one", False), Line("two", False), Line("three", False)]


def test_a_progress_bar_is_one_line_as_it_looked_in_the_end() -> None:
    assert lines(b"\rloading:   0%|  |", b"\rloading:  50%|# ", b"|\rloading: 100%|##|\n") == [
        Line("loading: 100%|##|", True)
    ]
    assert lines(b"\rhalf", b"\r", b"\n") == [Line("half", True)]


def test_control_characters_are_removed() -> None:
    said = "\x1b[31mred\x1b[0m a\tb \x00\x07é\u2028x".encode() + b" \xff"
    assert lines(said) == [Line("red a    b éx \ufffd", False)]


def test_an_endless_line_is_cut() -> None:
    splitter = LineSplitter()
    for _ in range(1000):
        assert list(splitter.feed(b"x" * 2**16)) == []
    [line] = splitter.end()
    assert len(line.text) == stderr._MAX_LINE_BYTES


@given(st.text("ab\r\n", max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_lines_do_not_depend_on_how_bytes_are_cut(text: str, cuts: list[int]) -> None:
    data, ends = text.encode(), sorted({0, 40, *cuts})
    assert lines(*(data[a:b] for a, b in zip(ends, ends[1:], strict=False))) == lines(data)


def test_a_flood_is_logged_in_part_and_its_end_whole(caplog: pytest.LogCaptureFixture) -> None:
    count, ours, theirs = 200_000, *os.pipe()
    clock = Clock()
    relay = StderrRelay("7", os.fdopen(ours, "rb", 0), clock)
    with os.fdopen(theirs, "wb") as writing:
        for i in range(count):
            writing.write(b"line %d of many, and none of them tells anything new\n" % i)
    relay._thread.join()
    said = [message for _, message in logged(caplog)]
    assert len(said) == stderr._MAX_LINES + 1 + stderr._LAST_LINES
    assert said[0].startswith("worker 7: line 0 of")
    assert said[stderr._MAX_LINES] == f"worker 7: … {count - stderr._MAX_LINES - stderr._LAST_LINES} more lines …"
    assert said[-1].startswith(f"worker 7: line {count - 1} of")
    assert [f"worker 7: {line}" for line in relay.last_lines] == said[-stderr._LAST_LINES :]


def test_after_a_flood_lines_are_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = os.pipe()
    clock, ends = Clock(), os.fdopen(theirs, "wb", 0)
    relay = StderrRelay("7", os.fdopen(ours, "rb", 0), clock)
    ends.write(b"x\n" * (stderr._MAX_LINES + 5))
    while len(relay._delayed) < 5:
        pass
    clock.now += stderr._WINDOW_S
    ends.write(b"later\n")
    ends.close()
    relay._thread.join()
    assert [message for _, message in logged(caplog)] == ["worker 7: x"] * (stderr._MAX_LINES + 5) + ["worker 7: later"]


async def test_a_worker_that_dies_while_loading_says_why(workers: Path, caplog: pytest.LogCaptureFixture) -> None:
    does(workers, r'say("\rloading: 50%\rloading: 99%\nfree(): invalid pointer\n"); os.abort()')
    with pytest.raises(ConfigurationError) as failed:
        await WorkerPool([SPEC]).start()
    assert str(failed.value) == "The worker process ended with status -6.\n  free(): invalid pointer"
    assert logged(caplog) == [("INFO", "worker 0: loading: 99%"), ("WARNING", "worker 0: free(): invalid pointer")]
    assert {record.worker for record in caplog.records if record.name == "w2s.worker"} == {"0"}  # type: ignore[attr-defined]


async def test_a_flood_of_output_does_not_hold_a_worker_up(workers: Path, caplog: pytest.LogCaptureFixture) -> None:
    does(workers, r'say("again and again\n" * 1_000_000); serve()')
    others = relays()
    pool = WorkerPool([SPEC])
    await pool.start()
    assert pool.ready
    await pool.stop()
    await until(lambda: relays() <= others)
    assert len(logged(caplog)) <= 10 * (stderr._MAX_LINES + stderr._LAST_LINES + 1), "16 MB take no hundred seconds"


async def test_workers_that_come_and_go_leave_no_thread_and_no_file(workers: Path) -> None:
    does(workers, r'say("here\n"); parent.send(Ready({}))')
    clock = Clock()
    files, others = psutil.Process().num_fds(), relays()
    pool = WorkerPool([SPEC], backoff=lambda: Backoff(clock, clock.sleep))
    await pool.start()
    await until(lambda: len(clock.sleeps) > 4)
    await pool.stop()
    await until(lambda: relays() <= others and psutil.Process().num_fds() <= files)


def relays() -> set[threading.Thread]:
    """Those that run, of workers in other tests' hands as well."""
    return {thread for thread in threading.enumerate() if thread.name == "w2s-stderr"}


@pytest.mark.parametrize("terminal", [True, False])
def test_on_a_terminal_workers_write_to_stderr_themselves(terminal: bool) -> None:
    ours, theirs = pty.openpty() if terminal else os.pipe()
    code = "from w2s_core.pool.stderr import stderr_is_terminal; raise SystemExit(stderr_is_terminal())"
    try:
        done = subprocess.run([PYTHON, "-c", code], stderr=theirs, check=False)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == terminal
