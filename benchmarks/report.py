"""Formats the results: a Markdown table and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cases import Run
from benchmarks.figures import Figure, Trial

_HEAD = ("figure", "target", "median (min .. max)", "reached", "of tokens/s")


def table(figures: Sequence[Figure]) -> str:
    """The results as a Markdown table, one row per figure."""
    return markdown([_HEAD, *(_row(figure) for figure in figures)])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the header."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _row(figure: Figure) -> tuple[str, ...]:
    sign = "≤" if figure.at_most else "≥"
    value = figure.note if figure.value is None else str(figure.value)
    reached = {None: "", True: "yes", False: "no"}[figure.reached]
    parts = " ÷ ".join(f"{spread.median:.3g}" for spread in figure.systems.values()) if len(figure.systems) > 1 else ""
    note = f" ({figure.note})" if figure.value is not None and figure.note else ""
    return (figure.title, f"{sign} {figure.target:g}", value + note, reached, parts)


def phases(trials: Mapping[Run, Sequence[Trial]]) -> str:
    """The share of time that each phase of the naive search took."""
    lines = []
    for run, measured in trials.items():
        total = sum(trial.seconds for trial in measured)
        names = list(dict.fromkeys(name for trial in measured for name in trial.phases))
        if names:
            shares = {name: sum(trial.phases.get(name, 0.0) for trial in measured) / total for name in names}
            text = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            lines.append(f"{run.system}, {run.load.pair}, prompt {run.load.prompt}, T={run.load.tokens}: {text}")
    return "\n".join(lines)


def as_json(about: Mapping[str, Any], figures: Sequence[Figure], trials: Mapping[Run, Sequence[Trial]]) -> str:
    """All figures and trials as JSON."""
    content = {
        **about,
        "figures": [asdict(figure) | {"reached": figure.reached} for figure in figures],
        "trials": [
            {"system": run.system, "load": asdict(run.load), "trials": [asdict(trial) for trial in measured]}
            for run, measured in trials.items()
        ],
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
