"""`make overload`: what happens to those who are let in when four times as many clients come as there is room for."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import click
import httpx

from benchmarks import client
from benchmarks.figures import percentile
from benchmarks.machine import machine
from benchmarks.processes import Usage
from benchmarks.prompts import excerpt
from benchmarks.report import write
from benchmarks.server_process import Server, server_process
from benchmarks.settings import DEMO, Settings, prepare
from w2s_core.config import EngineConfig, Limits
from w2s_core.text.tokenizer import HFTokenizer

_ROWS = 16  # of a request: W·K = 4·4
_AT_ONCE, _QUEUED = 4, 1  # requests that run and that may wait
_PROMPT = 20  # tokens
_PATIENCE_S = 300.0  # for one request


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its status, seconds from sending to the end, and if it was refused, how long it shall wait."""

    status: int
    seconds: float
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """What came of offering `offered` requests a second (None: as many at once as run, one after the other) for
    `seconds`. `chunks`: drawn and ranked a second, of 5 tokens each; times in seconds; `client`: share of the machine's
    processors that the clients took, `foreign`: that others took."""

    offered: float | None
    seconds: float
    accepted: int
    refused: int
    chunks: float
    median: float
    p95: float
    refusal_median: float
    refusal_p99: float
    most_waiting: int
    client: float
    foreign: float


class Load:
    """Guided requests of equal length, each of a seed and a prompt of its own."""

    def __init__(self, server: Server, tokenizer: HFTokenizer, tokens: int) -> None:
        self.server = server
        self.tokens = tokens
        self.most_waiting = 0
        self._tokenizer = tokenizer
        self._numbers = count()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(base_url=server.url, timeout=_PATIENCE_S, limits=limits)

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self) -> Asked:
        """Raises where the answer is neither whole nor a refusal."""
        number = next(self._numbers)
        body = client.body(DEMO, excerpt(self._tokenizer, _PROMPT, number), self.tokens, number)
        start = time.perf_counter()
        try:
            answer = await client.stream(self._http, body)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.TOO_MANY_REQUESTS:
                raise
            seconds = time.perf_counter() - start
            return Asked(429, seconds, retry_after_s=float(error.response.headers["retry-after"]))
        if answer.tokens != self.tokens:
            raise RuntimeError(f"{answer.tokens} tokens came instead of {self.tokens}")
        return Asked(200, answer.seconds)

    async def metric(self, name: str) -> float:
        text = (await self._http.get("/metrics")).text
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))

    async def closed(self, seconds: float) -> list[Asked]:
        """As many clients as there is room for, each asking again when it has its answer."""
        end = time.monotonic() + seconds

        async def one() -> list[Asked]:
            found = []
            while time.monotonic() < end:
                found.append(await self.ask())
            return found

        return [asked for found in await asyncio.gather(*(one() for _ in range(_AT_ONCE))) for asked in found]

    async def open(self, seconds: float, rate: float) -> list[Asked]:
        """`rate` requests a second, whatever becomes of those before."""
        start, tasks = time.monotonic(), []
        for i in range(int(seconds * rate)):
            await asyncio.sleep(max(0.0, start + i / rate - time.monotonic()))
            tasks.append(asyncio.create_task(self.ask()))
        return list(await asyncio.gather(*tasks))


async def level(load: Load, seconds: float, rate: float | None) -> Level:
    """Speed and shares are of the time in which requests came, without the last ones' going on alone."""
    load.most_waiting = 0
    work = asyncio.create_task(load.closed(seconds) if rate is None else load.open(seconds, rate))
    before, cpu, chunks = Usage.now(), time.process_time(), await load.metric("w2s_chunks_total")
    while time.perf_counter() - before.time < seconds and not work.done():
        load.most_waiting = max(load.most_waiting, int(await load.metric("w2s_rows_waiting")))
        await asyncio.sleep(0.5)
    done, now = await load.metric("w2s_chunks_total") - chunks, Usage.now()
    passed = now.time - before.time
    used = time.process_time() - cpu
    answered = await work
    times = [asked.seconds for asked in answered if asked.status == 200]
    refusals = [asked.seconds for asked in answered if asked.status == 429]
    return Level(
        offered=rate,
        seconds=passed,
        accepted=len(times),
        refused=len(refusals),
        chunks=done / passed,
        median=median(times),
        p95=percentile(times, 95),
        refusal_median=median(refusals or [0.0]),
        refusal_p99=percentile(refusals or [0.0], 99),
        most_waiting=load.most_waiting,
        client=used / passed / int(str(machine()["cores"])),
        foreign=now.foreign_since(before),
    )


async def levels(
    config: EngineConfig, tokenizer: HFTokenizer, seconds: float, tokens: int, storm: float
) -> list[Level]:
    """At capacity, at four times as much, and a storm of `storm` requests a second."""
    found: list[Level] = []
    async with server_process(config) as server:
        load = Load(server, tokenizer, tokens)
        try:
            await asyncio.gather(*(load.ask() for _ in range(_AT_ONCE)))
            for times in (1, 4, None):
                capacity = found[0].accepted / found[0].seconds if found else 0.0
                rate = None if times == 1 else storm if times is None else times * capacity
                found.append(await level(load, seconds, rate))
                click.echo(table(found).splitlines()[-1], err=True)
        finally:
            await load.close()
    return found


def table(found: Sequence[Level]) -> str:
    """In Markdown, everything beside the first level."""
    first = found[0]
    lines = [
        "| requests a second | answered | refused | goodput | median, s | p95, s | refused after, ms (p99) "
        "| most rows waiting | clients' share of the machine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        rate = f"{one.accepted / one.seconds:.2f} (capacity)" if one.offered is None else f"{one.offered:.2f}"
        goodput = f"{one.chunks:.2f} chunks/s ({one.chunks / first.chunks:.0%})"
        refusal = f"{1000 * one.refusal_median:.1f} ({1000 * one.refusal_p99:.1f})" if one.refused else "–"
        times = f"{one.median:.2f} (× {one.median / first.median:.2f}) | {one.p95:.2f}"
        counts = f"{one.accepted} | {one.refused}"
        lines.append(f"| {rate} | {counts} | {goodput} | {times} | {refusal} | {one.most_waiting} | {one.client:.1%} |")
    return "\n".join(lines)


def run(settings: Settings, out: Path, *, seconds: float, tokens: int, storm: float) -> list[Level]:
    """Measures, prints a table on stdout, writes overload.json and overload.md into `out`."""
    about: dict[str, Any] = {"machine": machine(), "settings": asdict(settings)}
    with tempfile.TemporaryDirectory(prefix="w2s-overload-") as folder:
        models = prepare(settings, Path(folder), equal=False)
        config = models.engine_config(settings)
        config = replace(
            config,
            limits=Limits(max_queued_rows=_QUEUED * _ROWS),
            workers=replace(config.workers, max_rows=_AT_ONCE * _ROWS),
        )
        found = asyncio.run(levels(config, HFTokenizer(models.large), seconds, tokens, storm))
    click.echo(table(found))
    write(out / "overload.json", json.dumps(about | {"levels": [asdict(one) for one in found]}, indent=1) + "\n")
    write(out / "overload.md", table(found) + "\n")
    return found


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/load"), show_default=True)
@click.option("--seconds", default=45.0, show_default=True, help="Of each of three levels.")
@click.option("--tokens", type=click.IntRange(min=2), default=32, show_default=True, help="Of an answer.")
@click.option("--storm", default=100.0, show_default=True, help="Requests a second of the last level.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="Of the worker.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
def main(out: Path, seconds: float, tokens: int, storm: float, **options: Any) -> None:
    """Offer more than there is room for to a server of its own: four guided requests run, one may wait."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that whoever ends us ends the server, too
    run(replace(Settings(), **options), out, seconds=seconds, tokens=tokens, storm=storm)


if __name__ == "__main__":
    main()
