"""Soak test (`python -m tests.mixed_load`): mixed traffic against a real server while its worker processes are killed.

It checks that no request is lost or stuck, and that the server leaks no tasks, threads, files, processes or memory.
Exits with 1 if anything is wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import httpx
import psutil

from tests.replica import Replica, eventually, served, status_of
from tests.traffic import GONE, Ending, Sizes, Traffic

KINDS = ("whole", "whole", "stream", "stream", "cancel", "slow reader", "slow sender", "bad")
LOADING = 300.0  # seconds
IDLE_TIMEOUT = 60.0  # seconds within which all resources must be released
GROWTH_MIB = 16  # how much the resident memory of a process with a 135 M-parameter model varies between rounds
CLIENTS, SIZES = 12, Sizes(least=4, most=24)
KV_GB = 0.08  # small: its memory is committed when first written, so workers grow until all of it was used
KV_MIB = 2 * 3 * KV_GB * 1e9 / 2**20  # two workers of three models
SETTINGS = {
    "W2S_WORKERS__DEVICES": '["cpu", "cpu"]',
    "W2S_WORKERS__THREADS": "1",
    "W2S_WORKERS__KV_CACHE_GB": str(KV_GB),
}
IDLE = ("requests_running", "requests_waiting", "rows_running", "rows_waiting", "kv_cache_usage_ratio")
SERVER = """
import asyncio, gc, signal, sys
def report(*_):
    gc.collect()
    print("tasks:", len(asyncio.all_tasks()), file=sys.stderr, flush=True)
signal.signal(signal.SIGUSR1, report)
from server.cli import main
main()
"""


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources that the server and its workers hold; memory is resident, in MiB."""

    tasks: int
    threads: int
    files: int
    processes: int
    server: float
    workers: float

    @property
    def counts(self) -> tuple[int, ...]:
        return self.tasks, self.threads, self.files, self.processes


@dataclass(frozen=True, slots=True)
class Round:
    endings: Sequence[Ending]
    killed: int
    resources: Resources


class Server:
    """The server process, observed from outside."""

    def __init__(self, running: Replica) -> None:
        self.url = running.url
        self._running = running
        self._process = psutil.Process(running.process.pid)

    @property
    def workers(self) -> list[psutil.Process]:
        children = self._process.children(recursive=True)
        return [child for child in children if "w2s_core.worker.main" in child.cmdline()]

    def metrics(self) -> dict[str, float]:
        """The value of every metric, summed over its labels."""
        found: Counter[str] = Counter()
        for line in httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines():
            if not line.startswith("#"):
                found[re.split(r"[ {]", line)[0]] += float(line.rpartition(" ")[2])
        return dict(found)

    def is_idle(self) -> bool:
        return status_of(f"{self.url}/ready") == 200 and not any(self.metrics()[f"w2s_{name}"] for name in IDLE)

    def resources(self) -> Resources:
        self._process.send_signal(signal.SIGUSR1)
        tasks = int(self._running.until("tasks: ").split()[1])
        return Resources(
            tasks=tasks,
            threads=self._process.num_threads(),
            files=self._process.num_fds(),
            processes=len(self._process.children(recursive=True)),
            server=round(self._process.memory_info().rss / 2**20, 1),
            workers=round(sum(worker.memory_info().rss for worker in self.workers) / 2**20, 1),
        )


@contextmanager
def running_server(variables: dict[str, str]) -> Iterator[Server]:
    """Serves the demo, unless `variables` name another configuration, on two workers so that one can fail over."""
    command = [sys.executable, "-c", SERVER, "serve", "--port", "0", "--dtype", "float32", "--log-level", "error"]
    with served(command, SETTINGS | variables, LOADING) as running:
        yield Server(running)


async def one_round(server: Server, seconds: float, kills: int, seed: int) -> Round:
    end, killed = time.monotonic() + seconds, 0
    async with Traffic(server.url, KINDS, "smollm2", "smollm2-positive", CLIENTS, seed, SIZES) as traffic:
        for left in range(kills, -1, -1):
            await asyncio.sleep(max(0.0, end - time.monotonic()) / (left + 1))
            if left and (workers := server.workers):
                os.kill(workers[left % len(workers)].pid, signal.SIGKILL)
                killed += 1
    await asyncio.to_thread(eventually, server.is_idle, IDLE_TIMEOUT)
    samples = [server.resources()]
    while len(samples) < 100 and (
        len(samples) < 2 or samples[-1].counts != samples[-2].counts
    ):  # until connections have been closed
        await asyncio.sleep(0.5)
        samples.append(server.resources())
    return Round(traffic.endings, killed, samples[-1])


def faults(rounds: Sequence[Round], restarts: int) -> list[str]:
    """Everything that went wrong. The first round is for warm-up: resources are compared with those at its end."""
    endings = [ending for found in rounds for ending in found.endings]
    problems = [f"{e.request_id} ({e.kind}): {e.status} {e.detail}" for e in endings if not e.whole and not _excused(e)]
    first, *later = [found.resources for found in rounds]
    for now in later:
        if now.counts != first.counts:
            problems.append(f"resources leak: {now}, after the first round {first}")
    for name, most in (("server", GROWTH_MIB), ("workers", GROWTH_MIB + KV_MIB)):
        steady = [getattr(now, name) for now in later[len(later) // 2 :]]
        if steady and max(steady) - steady[0] > most:
            problems.append(f"the memory of {name} grows: {steady} MiB")
    if restarts != sum(found.killed for found in rounds):
        problems.append(f"{restarts} restarts after {sum(found.killed for found in rounds)} kills")
    return problems


def _excused(ending: Ending) -> bool:
    """503 is allowed: both workers may be down for a moment after a kill."""
    return ending.status == 503


def summary(rounds: Sequence[Round]) -> dict[str, object]:
    endings = [ending for found in rounds for ending in found.endings]
    return {
        "requests": len(endings),
        "by kind": dict(Counter(ending.kind for ending in endings)),
        "by status": {str(status): count for status, count in Counter(ending.status for ending in endings).items()},
        "disconnected": sum(ending.detail == GONE for ending in endings),
        "workers killed": sum(found.killed for found in rounds),
        "longest, s": round(max(ending.seconds for ending in endings), 1),
        "held": [asdict(found.resources) for found in rounds],
    }


async def run(seconds: float, rounds: int, variables: dict[str, str]) -> tuple[list[Round], list[str]]:
    """Two kills in each round of the first third, none later, when the workers' memory is compared."""
    found, kills = list[Round](), (rounds + 2) // 3
    with running_server(variables) as server:
        for number in range(rounds):
            found.append(await one_round(server, seconds / rounds, 2 if number < kills else 0, number))
            last = found[-1]
            click.echo(f"round {number}: {len(last.endings)} requests, {last.killed} kills, {last.resources}", err=True)
        restarts = int(server.metrics()["w2s_worker_restarts_total"])
    return found, faults(found, restarts)


@click.command()
@click.option("--seconds", default=600.0, show_default=True, help="Seconds of load, all rounds together.")
@click.option("--rounds", default=10, show_default=True, help="Rounds; the resources are checked after each.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write the figures as JSON.")
def main(seconds: float, rounds: int, out: Path | None) -> None:
    """Load a server of its own with every sort of request at once."""
    found, wrong = asyncio.run(run(seconds, rounds, {}))
    figures = json.dumps(summary(found), indent=1)
    click.echo(re.sub(r"\{\s+([^{}]*?)\s+\}", lambda m: "{" + re.sub(r"\s+", " ", m[1]) + "}", figures))
    if out:
        out.write_text(figures + "\n")
    for fault in wrong:
        click.echo(fault, err=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
