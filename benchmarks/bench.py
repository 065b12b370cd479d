"""The speed benchmark (`make bench`): compares this engine with other systems at equal threads and precision.

The systems take turns within one run, so that they share the machine's condition. The targets are in `cases`.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.cases import IDLE_SHARE, Case, Run, cases
from benchmarks.figures import Figure, Trial
from benchmarks.machine import machine
from benchmarks.processes import CpuUsage, wait_until_idle
from benchmarks.report import as_json, phases, table, write
from benchmarks.settings import EQUAL, Settings, prepare
from benchmarks.systems import VLLM_SYSTEMS, System, Systems, open_systems
from w2s_core.worker.int8 import can_multiply

_WARM_UP_TOKENS = 10
_ATTEMPT_SEED_STRIDE = 100  # each attempt has other prompts, so that the engine does not profit from its prefix cache
_STEPS_OF_REPEAT = 5  # decode steps that are timed for each repeat
_NOT_INSTALLED = "not at hand"
Trials = dict[Run, list[Trial]]


async def measure(settings: Settings, selected: Sequence[Case]) -> Trials:
    """The trials of the selected cases, group by group. The runs of a group take turns, `repeats` times."""
    trials: Trials = {run: [] for case in selected for run in case.runs}
    deadline = time.perf_counter() + 60 * settings.minutes
    equal = any(run.load.pair == EQUAL for run in trials)
    with tempfile.TemporaryDirectory(prefix="w2s-bench-") as folder:
        models = prepare(settings, Path(folder), equal=equal)
        async with open_systems(settings, models, {run.system for run in trials}) as systems:
            for group in dict.fromkeys(case.group for case in selected):
                runs = list(dict.fromkeys(run for case in selected if case.group == group for run in case.runs))
                async for run, trial in _in_turns(systems, group, runs, settings, deadline):
                    trials[run].append(trial)
    return trials


async def _in_turns(
    systems: Systems, group: str, runs: Sequence[Run], settings: Settings, deadline: float
) -> AsyncIterator[tuple[Run, Trial]]:
    for run in runs:
        await systems.measure(run.system, run.load.at_most(_WARM_UP_TOKENS), seed=0)
    for repeat in range(1, settings.repeats + 1):
        if repeat > 1 and time.perf_counter() > deadline:
            return
        for run in runs:
            trial = await _undisturbed(systems, run, repeat, settings.attempts)
            took = f"{trial.seconds:.1f} s, others {trial.foreign:.0%}"
            click.echo(f"{group} {repeat}/{settings.repeats}: {run}: {trial.speed:.2f} tokens/s ({took})", err=True)
            yield run, trial


async def _undisturbed(systems: Systems, run: Run, seed: int, attempts: int) -> Trial:
    """The first trial during which other processes used little of the machine, or else the least disturbed one."""
    candidates: list[Trial] = []
    for attempt in range(attempts):
        if attempts > 1:
            await wait_until_idle(IDLE_SHARE)
        before = CpuUsage.now()
        trial = await systems.measure(run.system, run.load, seed + attempt * _ATTEMPT_SEED_STRIDE)
        candidates.append(replace(trial, foreign=CpuUsage.now().foreign_since(before)))
        if candidates[-1].foreign <= IDLE_SHARE:
            break
    return min(candidates, key=lambda trial: trial.foreign)


def missing_systems(settings: Settings) -> frozenset[System]:
    """The systems that this machine has not: vLLM where none is named, int8 on a CPU without VNNI."""
    int8: frozenset[System] = frozenset() if can_multiply(torch.device("cpu")) else frozenset(("int8",))
    return int8 if settings.vllm else int8 | VLLM_SYSTEMS


def figures_of(selected: Sequence[Case], measured: Sequence[Case], trials: Trials) -> list[Figure]:
    """One figure per selected case, empty for those that could not be measured."""
    return [case.figure(trials) if case in measured else case.missing(_NOT_INSTALLED) for case in selected]


def run(settings: Settings, only: Sequence[str], out: Path) -> list[Figure]:
    """Measures, prints the table on stdout, writes bench.json and bench.md into `out`."""
    selected = [case for case in cases(settings) if not only or case.name in only]
    missing = missing_systems(settings)
    measured = [case for case in selected if not missing & {run.system for run in case.runs}]
    before, start = machine(), time.perf_counter()
    trials = asyncio.run(measure(settings, measured))
    figures = figures_of(selected, measured, trials)
    about = {"machine": before, "settings": asdict(settings), "seconds": round(time.perf_counter() - start)}
    text = table(figures) if only else table(figures) + "\n\nWhat a step takes beyond its floor:\n\n" + floor(settings)
    click.echo(text)
    click.echo("\nWhere the naive system's time goes:\n" + phases(trials))
    write(out / "bench.json", as_json(about, figures, trials))
    write(out / "bench.md", text + "\n")
    click.echo(f"wrote {out}/bench.json and bench.md", err=True)
    return figures


def floor(settings: Settings) -> str:
    """The table of `step_floor`, which runs in a process of its own, because it computes."""
    command = [sys.executable, "-m", "benchmarks.step_floor", "--model", settings.large]
    command += ["--threads", str(settings.threads), "--repeats", str(settings.repeats * _STEPS_OF_REPEAT)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _find_vllm() -> str | None:
    path = Path(".venv-vllm/bin/vllm")
    return str(path.absolute()) if path.exists() else None


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/bench"), show_default=True)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([case.name for case in cases(Settings())]),
    help="Measure only this case; repeatable.",
)
@click.option("--quick", is_flag=True, help="One repeat with half as many tokens: takes minutes, gives rough figures.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--attempts",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Attempts per trial while other processes disturb it.",
)
@click.option("--minutes", type=float, default=20.0, show_default=True, help="Start no further repeat after this time.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=2, show_default=True, help="CPU threads of every system."
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option(
    "--vllm", default=_find_vllm, help="Path of the command `vllm`.  [default: .venv-vllm/bin/vllm if it is there]"
)
def main(out: Path, only: tuple[str, ...], *, quick: bool, **options: Any) -> None:
    """Measure this engine against the search as published, transformers, itself and vLLM."""
    settings = Settings(**options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM stops the child processes, too
    run(replace(settings, repeats=1, shrink=2) if quick else settings, only, out)


if __name__ == "__main__":
    main()
