"""The results for people and for programs."""

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
    """One line a figure, in Markdown."""
    return markdown([_HEAD, *(_row(figure) for figure in figures)])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _row(figure: Figure) -> tuple[str, ...]:
    sign = "≤" if figure.at_most else "≥"
    value = figure.note if figure.value is None else str(figure.value)
    reached = {None: "", True: "yes", False: "no"}[figure.reached]
    parts = " ÷ ".join(f"{spread.median:.3g}" for spread in figure.sides.values()) if len(figure.sides) > 1 else ""
    note = f" ({figure.note})" if figure.value is not None and figure.note else ""
    return (figure.title, f"{sign} {figure.target:g}", value + note, reached, parts)


def phases(trials: Mapping[Run, Sequence[Trial]]) -> str:
    """Where the naive side's time went, in per cent."""
    lines = []
    for run, measured in trials.items():
        total = sum(trial.seconds for trial in measured)
        names = list(dict.fromkeys(name for trial in measured for name in trial.phases))
        if names:
            shares = {name: sum(trial.phases.get(name, 0.0) for trial in measured) / total for name in names}
            text = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            lines.append(f"{run.side}, {run.load.pair}, prompt {run.load.prompt}, T={run.load.tokens}: {text}")
    return "\n".join(lines)


def as_json(about: Mapping[str, Any], figures: Sequence[Figure], trials: Mapping[Run, Sequence[Trial]]) -> str:
    """Everything that was measured."""
    content = {
        **about,
        "figures": [asdict(figure) | {"reached": figure.reached} for figure in figures],
        "trials": [
            {"side": run.side, "load": asdict(run.load), "trials": [asdict(trial) for trial in measured]}
            for run, measured in trials.items()
        ],
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
