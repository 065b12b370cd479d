"""The overload benchmark (`make overload`): goodput and latency when four times the capacity is offered."""

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
from benchmarks.processes import CpuUsage
from benchmarks.prompts import excerpt
from benchmarks.report import write
from benchmarks.server_process import Server, server_process
from benchmarks.settings import DEMO, Settings, prepare
from w2s_core.config import EngineConfig, Limits
from w2s_core.text.tokenizer import HFTokenizer

_ROWS = 16  # rows per request: W·K = 4·4
_AT_ONCE, _QUEUED = 4, 1  # requests that run and that may wait
_PROMPT = 20  # tokens
_TIMEOUT_S = 300.0  # for one request


@dataclass(frozen=True, slots=True)
class RequestResult:
    """The result of one request: status, seconds until its end, and Retry-After if it was refused."""

    status: int
    seconds: float
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The result of offering `offered` requests per second for `seconds`; None: a closed loop at capacity.

    `chunks`: chunks of 5 tokens sampled and ranked per second. Times are in seconds. `client` and `foreign`: shares of
    the machine's processors that the clients and other processes used.
    """

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


class LoadGenerator:
    """Sends guided requests of equal length, each with its own seed and prompt."""

    def __init__(self, server: Server, tokenizer: HFTokenizer, tokens: int) -> None:
        self.server = server
        self.tokens = tokens
        self.most_waiting = 0
        self._tokenizer = tokenizer
        self._numbers = count()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(base_url=server.url, timeout=_TIMEOUT_S, limits=limits)

    async def close(self) -> None:
        await self._http.aclose()

    async def send(self) -> RequestResult:
        """Sends one request. Raises unless it is answered completely or refused with 429."""
        number = next(self._numbers)
        body = client.body(DEMO, excerpt(self._tokenizer, _PROMPT, number), self.tokens, number, ignore_eos=True)
        start = time.perf_counter()
        try:
            answer = await client.stream(self._http, body)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.TOO_MANY_REQUESTS:
                raise
            seconds = time.perf_counter() - start
            return RequestResult(429, seconds, retry_after_s=float(error.response.headers["retry-after"]))
        if answer.tokens != self.tokens:
            raise RuntimeError(f"got {answer.tokens} tokens instead of {self.tokens}")
        return RequestResult(200, answer.seconds)

    async def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        text = (await self._http.get("/metrics")).text
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))

    async def closed_loop(self, seconds: float) -> list[RequestResult]:
        """Closed loop at capacity: each client sends its next request when the previous one is answered."""
        end = time.monotonic() + seconds

        async def client_loop() -> list[RequestResult]:
            results = []
            while time.monotonic() < end:
                results.append(await self.send())
            return results

        clients = await asyncio.gather(*(client_loop() for _ in range(_AT_ONCE)))
        return [result for results in clients for result in results]

    async def open_loop(self, seconds: float, rate: float) -> list[RequestResult]:
        """Open loop: sends `rate` requests per second, whether or not earlier ones have been answered."""
        start, tasks = time.monotonic(), []
        for i in range(int(seconds * rate)):
            await asyncio.sleep(max(0.0, start + i / rate - time.monotonic()))
            tasks.append(asyncio.create_task(self.send()))
        return list(await asyncio.gather(*tasks))


async def run_level(load: LoadGenerator, seconds: float, rate: float | None) -> LoadResult:
    """Measures one level. Rates and shares cover the time in which requests are sent, not the last ones' tail."""
    load.most_waiting = 0
    work = asyncio.create_task(load.closed_loop(seconds) if rate is None else load.open_loop(seconds, rate))
    before, cpu, chunks = CpuUsage.now(), time.process_time(), await load.metric("w2s_chunks_total")
    while time.perf_counter() - before.time < seconds and not work.done():
        load.most_waiting = max(load.most_waiting, int(await load.metric("w2s_rows_waiting")))
        await asyncio.sleep(0.5)
    done, now = await load.metric("w2s_chunks_total") - chunks, CpuUsage.now()
    passed = now.time - before.time
    used = time.process_time() - cpu
    results = await work
    times = [result.seconds for result in results if result.status == 200]
    refusals = [result.seconds for result in results if result.status == 429]
    return LoadResult(
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


async def run_levels(
    config: EngineConfig, tokenizer: HFTokenizer, seconds: float, tokens: int, storm: float
) -> list[LoadResult]:
    """Measures three levels: at capacity, at four times that, and at `storm` requests per second."""
    results: list[LoadResult] = []
    async with server_process(config) as server:
        load = LoadGenerator(server, tokenizer, tokens)
        try:
            await asyncio.gather(*(load.send() for _ in range(_AT_ONCE)))
            for factor in (1, 4, None):
                capacity = results[0].accepted / results[0].seconds if results else 0.0
                rate = None if factor == 1 else storm if factor is None else factor * capacity
                results.append(await run_level(load, seconds, rate))
                click.echo(table(results).splitlines()[-1], err=True)
        finally:
            await load.close()
    return results


def table(results: Sequence[LoadResult]) -> str:
    """A Markdown table that compares every level with the first."""
    first = results[0]
    lines = [
        "| requests a second | answered | refused | goodput | median, s | p95, s | refused after, ms (p99) "
        "| most rows waiting | clients' share of the machine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        rate = (
            f"{result.accepted / result.seconds:.2f} (capacity)" if result.offered is None else f"{result.offered:.2f}"
        )
        goodput = f"{result.chunks:.2f} chunks/s ({result.chunks / first.chunks:.0%})"
        refusal = f"{1000 * result.refusal_median:.1f} ({1000 * result.refusal_p99:.1f})" if result.refused else "–"
        times = f"{result.median:.2f} (× {result.median / first.median:.2f}) | {result.p95:.2f}"
        counts = f"{result.accepted} | {result.refused}"
        lines.append(
            f"| {rate} | {counts} | {goodput} | {times} | {refusal} | {result.most_waiting} | {result.client:.1%} |"
        )
    return "\n".join(lines)


def run(settings: Settings, out: Path, *, seconds: float, tokens: int, storm: float) -> list[LoadResult]:
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
        results = asyncio.run(run_levels(config, HFTokenizer(models.large), seconds, tokens, storm))
    click.echo(table(results))
    write(
        out / "overload.json", json.dumps(about | {"levels": [asdict(result) for result in results]}, indent=1) + "\n"
    )
    write(out / "overload.md", table(results) + "\n")
    return results


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/load"), show_default=True)
@click.option("--seconds", default=45.0, show_default=True, help="Seconds per level; there are three.")
@click.option("--tokens", type=click.IntRange(min=2), default=32, show_default=True, help="Tokens per answer.")
@click.option("--storm", default=100.0, show_default=True, help="Requests per second of the last level.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="CPU threads of the worker.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
def main(out: Path, seconds: float, tokens: int, storm: float, **options: Any) -> None:
    """Overload a server of its own, in which four guided requests run and one may wait."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM stops the server, too
    run(replace(Settings(), **options), out, seconds=seconds, tokens=tokens, storm=storm)


if __name__ == "__main__":
    main()
