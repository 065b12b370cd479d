"""Runs `w2s serve` in a child process, with a fake engine that generates tokens when the test allows it."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
SOON = 60  # seconds; only a failing test waits that long
REPLICA = """
import asyncio, sys, types
from tests.fakes import FakeLargeModel, fake_engine, letters

class Gate:
    "Lets one token pass per line of stdin, and all of them once stdin is closed."
    reader = None
    async def __call__(self):
        if self.reader is None:
            Gate.reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(self.reader)
            await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
        async with self.lock:
            await self.reader.readline()
    lock = asyncio.Lock()

def build(config):
    engine = fake_engine(FakeLargeModel(letters(eos=0), gate=Gate()), limits=config.limits)
    reserve = engine.admission.reserve
    def reserve_and_report(*arguments):
        ticket = reserve(*arguments)
        print("rows waiting:", engine.admission.rows_waiting, file=sys.stderr, flush=True)
        return ticket
    engine.admission.reserve = reserve_and_report
    return engine

sys.modules["w2s_core.build.engine"] = types.SimpleNamespace(build_engine=build)  # the real one is slow to import
from server.cli import main
main()
"""


@dataclass
class Replica:
    """A running server. `seen` are its lines on stderr, `lines` those that no `until` has consumed yet."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: queue.Queue[str | None] = field(default_factory=queue.Queue)
    seen: list[str] = field(default_factory=list)

    def until(self, words: str, within: float = SOON) -> str:
        """Waits for a line that contains `words`. Raises if no line comes for `within` seconds."""
        seen: list[str] = []
        while (line := self.lines.get(timeout=within)) is not None:
            seen.append(line)
            if words in line:
                return line
        raise AssertionError(f"{words!r} never came:\n{''.join(seen)}")

    def allow(self, tokens: int) -> None:
        """Lets the fake model generate so many tokens."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n" * tokens)
        self.process.stdin.flush()

    def run_free(self) -> None:
        """Lets the fake model generate freely from now on."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def left(self) -> int:
        """Waits for the process to exit and returns its exit code."""
        return self.process.wait(timeout=SOON)


@contextmanager
def replica(port: int = 0, **settings: str) -> Iterator[Replica]:
    """Starts a replica. `settings` are W2S_ variables without the prefix: `SERVER__DRAIN_TIMEOUT_S="1"`."""
    command = [sys.executable, "-c", REPLICA, "serve", "--port", str(port)]
    with served(command, {f"W2S_{name}": value for name, value in settings.items()}) as running:
        yield running


@contextmanager
def served(command: list[str], variables: Mapping[str, str], within: float = SOON) -> Iterator[Replica]:
    """Runs `command` and yields it once it is ready; leaving the context kills it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("W2S_")} | dict(variables)
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=-1, stderr=-1, text=True) as process:
        running = Replica(process)
        reading = threading.Thread(target=_read, args=(running,))
        reading.start()
        try:
            running.url = re.search(r"https?://\S+:\d+", running.until("Ready at", within))[0]
            yield running
        finally:
            process.kill()
            reading.join(SOON)


def _read(running: Replica) -> None:
    assert running.process.stderr is not None
    for line in running.process.stderr:
        running.seen.append(line)
        running.lines.put(line)
    running.lines.put(None)


def eventually(true: Callable[[], bool], within: float = SOON) -> None:
    """Waits until `true()` holds. Fails after `within` seconds."""
    end = time.monotonic() + within
    while not true():
        assert time.monotonic() < end, f"the condition did not hold within {within:g} s"
        time.sleep(0.01)


def status_of(url: str) -> int:
    return httpx.get(url, timeout=SOON).status_code
