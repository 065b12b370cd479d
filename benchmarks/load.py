"""Load benchmarks over HTTP: speed and latency by concurrency (`make load`), cost by request size (`make cost`)."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from benchmarks import client
from benchmarks.figures import percentile
from benchmarks.load_chart import draw_cost, draw_load
from benchmarks.load_levels import LoadLevel, Sweeps
from benchmarks.machine import machine
from benchmarks.memory import memory
from benchmarks.processes import peak_bytes
from benchmarks.prompts import excerpt
from benchmarks.report import write
from benchmarks.server_process import Server, server_process
from benchmarks.settings import DEMO, LARGE, Settings, Workload, prepare
from w2s_core.text.tokenizer import HFTokenizer

_TIMEOUT_S = 300.0  # for one level, so that a stuck server does not block the sweep
_WARM_UP = Workload(20, 10, DEMO)


def concurrency(tokens: int, most: int) -> list[Workload]:
    """Guided and plain requests at 1, 2, 4, … up to `most` streams."""
    return guided(tokens, most) + [
        Workload(20, tokens, None, w=1, k=1, streams=load.streams) for load in guided(tokens, most)
    ]


def guided(tokens: int, most: int) -> list[Workload]:
    counts = [2**i for i in range(most.bit_length()) if 2**i <= most]
    return [Workload(20, tokens, DEMO, streams=count) for count in counts]


def by_length(tokens: int) -> list[Workload]:
    return [Workload(20, tokens * factor, DEMO) for factor in (1, 2, 4, 8)]


def by_rows(tokens: int) -> list[Workload]:
    return [Workload(20, tokens, DEMO, w=w, k=k) for w, k in ((1, 1), (2, 2), (4, 4), (4, 8), (8, 8))]


def by_chunks(tokens: int) -> list[Workload]:
    return [Workload(20, tokens, DEMO, length=max(1, tokens // count)) for count in (32, 16, 8, 4, 2, 1)]


def by_memory(tokens: int) -> list[Workload]:
    return [Workload(prompt, tokens * factor, DEMO) for prompt in (20, 256) for factor in (1, 2, 3)]


async def measure(server: Server, tokenizer: HFTokenizer, load: Workload, seed: int) -> LoadLevel:
    """Measures one level; all its streams start at once."""
    bodies = [
        client.body(
            load.pair or LARGE, excerpt(tokenizer, load.prompt, seed + i), load.tokens, seed + i, **_guidance(load)
        )
        for i in range(load.streams)
    ]
    start = time.perf_counter()
    streams = await client.streams(server.url, bodies, _TIMEOUT_S)
    seconds = time.perf_counter() - start
    tokens = sum(stream.tokens for stream in streams)
    first = [stream.arrivals[0] for stream in streams if stream.arrivals]
    gaps = [gap for stream in streams for gap in stream.gaps]
    return LoadLevel(
        load=load,
        tokens=tokens,
        seconds=seconds,
        speed=tokens / seconds,
        first_p50=percentile(first, 50),
        first_p99=percentile(first, 99),
        gap_p50=percentile(gaps, 50),
        gap_p99=percentile(gaps, 99),
        ended=sum(stream.ended for stream in streams),
        peak_bytes=peak_bytes(server.pid),
    )


def _guidance(load: Workload) -> dict[str, Any]:
    if load.pair is None:
        return {}
    return {"guidance": {"beam_width": load.w, "successors": load.k, "chunk_length": load.length}}


async def sweep(settings: Settings, tokens: int, most: int, *, costs: bool) -> Sweeps:
    """Measures all levels one after another on one server; none starts after `settings.minutes`."""
    end = time.monotonic() + 60 * settings.minutes
    with tempfile.TemporaryDirectory(prefix="w2s-load-") as folder:
        models = prepare(settings, Path(folder), equal=False)
        tokenizer = HFTokenizer(models.large)
        async with server_process(models.engine_config(settings)) as server:
            await measure(server, tokenizer, _WARM_UP, 0)

            async def levels(name: str, loads: Sequence[Workload]) -> list[LoadLevel]:
                measured = []
                for load in loads:
                    if time.monotonic() > end:
                        click.echo(f"{name}: time is up, the rest is skipped", err=True)
                        break
                    measured.append(await measure(server, tokenizer, load, 1))
                    click.echo(f"{name}: {_line(measured[-1])}", err=True)
                return measured

            if not costs:
                return Sweeps(await levels("concurrency", concurrency(tokens, most)))
            sweeps = Sweeps(
                length=await levels("length", by_length(max(2, tokens // 2))),
                rows=await levels("rows", by_rows(tokens)),
                chunks=await levels("chunks", by_chunks(tokens)),
                concurrency=await levels("concurrency", guided(tokens, most)),
            )
        return replace(sweeps, memory=await memory(models, settings, by_memory(tokens)))


def _line(level: LoadLevel) -> str:
    load = level.load
    what = f"{load.w}/{load.k}/{load.length}" if load.pair else "plain"
    return (
        f"{load.streams} × {what}, T={load.tokens}: {level.speed:.1f} tokens/s, first {level.first_p50:.2f} s "
        f"(p99 {level.first_p99:.2f}), gap {level.gap_p50:.2f} s (p99 {level.gap_p99:.2f}), "
        f"peak {level.peak_bytes / 1e9:.2f} GB"
    )


def table(levels: Sequence[LoadLevel]) -> str:
    """A Markdown table of the levels of concurrency."""
    lines = [
        "| streams | kind | tokens/s | first text p50 / p99, s | between texts p50 / p99, s | peak memory, GB |",
        "|---|---|---|---|---|---|",
    ]
    for level in levels:
        kind = "plain" if level.load.pair is None else f"{level.load.w}/{level.load.k}/{level.load.length}"
        first, gap = f"{level.first_p50:.2f} / {level.first_p99:.2f}", f"{level.gap_p50:.2f} / {level.gap_p99:.2f}"
        memory = f"{level.peak_bytes / 1e9:.2f}"
        lines.append(f"| {level.load.streams} | {kind} | {level.speed:.1f} | {first} | {gap} | {memory} |")
    return "\n".join(lines)


def cost_table(sweeps: Sweeps) -> str:
    """Markdown tables of a request's time and KV use, by the parameter that is varied."""
    lines = ["| varied | W/K/L | T | streams | ms per committed token of one stream |", "|---|---|---|---|---|"]
    for name in ("length", "rows", "chunks", "concurrency"):
        for level in getattr(sweeps, name):
            load = level.load
            cost = 1000 * load.streams / level.speed
            lines.append(f"| {name} | {load.w}/{load.k}/{load.length} | {load.tokens} | {load.streams} | {cost:.0f} |")
    lines += ["", "| W/K/L | P | T | KV held, tokens | P + W·(T − L) + W·K·L | W·K·(P + T) |"]
    lines.append("|---|---|---|---|---|---|")
    for usage in sweeps.memory:
        load, shape = usage.load, f"{usage.load.w}/{usage.load.k}/{usage.load.length}"
        lines.append(
            f"| {shape} | {load.prompt} | {load.tokens} | {usage.peak_tokens} | {usage.predicted} | {usage.published} |"
        )
    return "\n".join(lines)


def run(settings: Settings, out: Path, *, tokens: int, most: int, costs: bool) -> Sweeps:
    """Measures, prints a table on stdout, writes load.json, load.md and load.png (or cost.…) into `out`."""
    name = "cost" if costs else "load"
    about = {"machine": machine(), "settings": asdict(settings)}
    sweeps = asyncio.run(sweep(settings, tokens, most, costs=costs))
    text = cost_table(sweeps) if costs else table(sweeps.concurrency)
    click.echo(text)
    write(out / f"{name}.json", json.dumps(about | asdict(sweeps), indent=1) + "\n")
    write(out / f"{name}.md", text + "\n")
    (draw_cost if costs else draw_load)(sweeps, out / f"{name}.png")
    click.echo(f"wrote {out}/{name}.json, {name}.md and {name}.png", err=True)
    return sweeps


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/load"), show_default=True)
@click.option(
    "--cost", "costs", is_flag=True, help="Measure the cost by length, rows, chunks and streams, and KV memory."
)
@click.option("--quick", is_flag=True, help="A third of the tokens per answer.")
@click.option("--minutes", type=float, default=6.0, show_default=True, help="Start no further level after this time.")
@click.option(
    "--most",
    type=click.IntRange(min=1, max=32),
    default=32,
    show_default=True,
    help="Maximum number of concurrent streams.",
)
@click.option("--tokens", type=click.IntRange(min=2), default=48, show_default=True, help="Tokens per answer.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="CPU threads of the worker.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
def main(out: Path, most: int, tokens: int, *, costs: bool, quick: bool, **options: Any) -> None:
    """Measure a server of its own over HTTP, by concurrency or by request size."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM stops the server, too
    run(replace(Settings(), **options), out, tokens=max(2, tokens // 3) if quick else tokens, most=most, costs=costs)


if __name__ == "__main__":
    main()
