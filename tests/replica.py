"""`w2s serve` as a process of its own, its engine a fake that goes on when the test says so."""

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
    "Every line of stdin lets one token pass; when it ends, all do."
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
    def told(*asked):
        ticket = reserve(*asked)
        print("rows waiting:", engine.admission.rows_waiting, file=sys.stderr, flush=True)
        return ticket
    engine.admission.reserve = told
    return engine

sys.modules["w2s_core.build.engine"] = types.SimpleNamespace(build_engine=build)  # the real one is slow to import
from server.cli import main
main()
"""


@dataclass
class Replica:
    """A running server. `allow` lets its fake model draw; `lines` is what it said on stderr and nobody has looked at,
    `seen` all of it."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: queue.Queue[str | None] = field(default_factory=queue.Queue)
    seen: list[str] = field(default_factory=list)

    def until(self, words: str, within: float = SOON) -> str:
        """The next line with these words; no two lines are further apart than `within` seconds."""
        seen: list[str] = []
        while (line := self.lines.get(timeout=within)) is not None:
            seen.append(line)
            if words in line:
                return line
        raise AssertionError(f"{words!r} never came:\n{''.join(seen)}")

    def allow(self, tokens: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n" * tokens)
        self.process.stdin.flush()

    def run_free(self) -> None:
        """Every token passes from now on."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def left(self) -> int:
        """Its exit code, once it has gone."""
        return self.process.wait(timeout=SOON)


@contextmanager
def replica(port: int = 0, **settings: str) -> Iterator[Replica]:
    """With `settings` as W2S_ variables, written without the prefix: `SERVER__DRAIN_TIMEOUT_S="1"`."""
    command = [sys.executable, "-c", REPLICA, "serve", "--port", str(port)]
    with served(command, {f"W2S_{name}": value for name, value in settings.items()}) as running:
        yield running


@contextmanager
def served(command: list[str], variables: Mapping[str, str], within: float = SOON) -> Iterator[Replica]:
    """`command`, once it is ready; killed at the end if it is still there."""
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
    """Returns once it holds; fails after `within` seconds."""
    end = time.monotonic() + within
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def status_of(url: str) -> int:
    return httpx.get(url, timeout=SOON).status_code
