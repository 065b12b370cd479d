"""`make bench`: the targets of SPEC section 6, all sides in one run, in turns, with equal threads and precision."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.cases import QUIET, Case, Run, cases
from benchmarks.figures import Figure, Trial
from benchmarks.machine import machine
from benchmarks.processes import Usage, quiet
from benchmarks.report import as_json, phases, table, write
from benchmarks.settings import EQUAL, Settings, prepare
from benchmarks.sides import VLLM_SIDES, Sides, open_sides

_WARM_UP_TOKENS = 10
_OTHER_SEEDS = 100  # between attempts: the engine must not profit from a prompt that it has seen
_NOT_AT_HAND = "not at hand"
Trials = dict[Run, list[Trial]]


async def measure(settings: Settings, wanted: Sequence[Case]) -> Trials:
    """Every run of the wanted cases, group by group; within a group in turns, `repeats` times."""
    trials: Trials = {run: [] for case in wanted for run in case.runs}
    deadline = time.perf_counter() + 60 * settings.minutes
    equal = any(run.load.pair == EQUAL for run in trials)
    with tempfile.TemporaryDirectory(prefix="w2s-bench-") as folder:
        models = prepare(settings, Path(folder), equal=equal)
        async with open_sides(settings, models, {run.side for run in trials}) as sides:
            for group in dict.fromkeys(case.group for case in wanted):
                runs = list(dict.fromkeys(run for case in wanted if case.group == group for run in case.runs))
                async for run, trial in _in_turns(sides, group, runs, settings, deadline):
                    trials[run].append(trial)
    return trials


async def _in_turns(
    sides: Sides, group: str, runs: Sequence[Run], settings: Settings, deadline: float
) -> AsyncIterator[tuple[Run, Trial]]:
    for run in runs:
        await sides.measure(run.side, run.load.at_most(_WARM_UP_TOKENS), seed=0)
    for repeat in range(1, settings.repeats + 1):
        if repeat > 1 and time.perf_counter() > deadline:
            return
        for run in runs:
            trial = await _undisturbed(sides, run, repeat, settings.attempts)
            took = f"{trial.seconds:.1f} s, others {trial.foreign:.0%}"
            click.echo(f"{group} {repeat}/{settings.repeats}: {run}: {trial.speed:.2f} tokens/s ({took})", err=True)
            yield run, trial


async def _undisturbed(sides: Sides, run: Run, seed: int, attempts: int) -> Trial:
    """The first trial while which others left the machine alone, or of all attempts the least disturbed one."""
    found: list[Trial] = []
    for attempt in range(attempts):
        if attempts > 1:
            await quiet(QUIET)
        before = Usage.now()
        trial = await sides.measure(run.side, run.load, seed + attempt * _OTHER_SEEDS)
        found.append(replace(trial, foreign=Usage.now().foreign_since(before)))
        if found[-1].foreign <= QUIET:
            break
    return min(found, key=lambda trial: trial.foreign)


def figures_of(wanted: Sequence[Case], measured: Sequence[Case], trials: Trials) -> list[Figure]:
    return [case.figure(trials) if case in measured else case.missing(_NOT_AT_HAND) for case in wanted]


def run(settings: Settings, only: Sequence[str], out: Path) -> list[Figure]:
    """Measures, prints the table on stdout, writes bench.json and bench.md into `out`."""
    wanted = [case for case in cases(settings) if not only or case.name in only]
    measured = [case for case in wanted if settings.vllm or not VLLM_SIDES & {run.side for run in case.runs}]
    before, start = machine(), time.perf_counter()
    trials = asyncio.run(measure(settings, measured))
    figures = figures_of(wanted, measured, trials)
    about = {"machine": before, "settings": asdict(settings), "seconds": round(time.perf_counter() - start)}
    text = table(figures)
    click.echo(text)
    click.echo("\nWhere the naive side's time goes:\n" + phases(trials))
    write(out / "bench.json", as_json(about, figures, trials))
    write(out / "bench.md", text + "\n")
    click.echo(f"wrote {out}/bench.json and bench.md", err=True)
    return figures


def _vllm_at_hand() -> str | None:
    path = Path(".venv-vllm/bin/vllm")
    return str(path.absolute()) if path.exists() else None


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/bench"), show_default=True)
@click.option("--only", multiple=True, type=click.Choice([case.name for case in cases(Settings())]), help="Repeatable.")
@click.option("--quick", is_flag=True, help="One repeat of half as many tokens: minutes, and rough.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--attempts", type=click.IntRange(min=1), default=3, show_default=True, help="When others disturb.")
@click.option("--minutes", type=float, default=20.0, show_default=True, help="No more repeats after that.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="Of every side.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option(
    "--vllm", default=_vllm_at_hand, help="The command `vllm`.  [default: .venv-vllm/bin/vllm if it is there]"
)
def main(out: Path, only: tuple[str, ...], *, quick: bool, **options: Any) -> None:
    """Measure this engine against the search as published, transformers, itself and vLLM."""
    settings = Settings(**options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that whoever ends us ends the sides, too
    run(replace(settings, repeats=1, shrink=2) if quick else settings, only, out)


if __name__ == "__main__":
    main()
