"""Bar charts of the results: judge and VADER by method, and the judge by W×K, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from w2s_core.evaluation.results import Results
from w2s_core.evaluation.scoring import Summary
from w2s_core.evaluation.settings import CBS

_COLOR, _HIGHLIGHT = "#9aa5b1", "#2f6fb0"
_SIZE_INCHES, _DPI = (4.2, 3.6), 110


def draw(results: Results, path: Path) -> None:
    """Writes a PNG with two panels, or three if there is an ablation."""
    panels: list[tuple[str, str, Sequence[Summary]]] = [
        ("Judge: P(positive)", "judge", results.main),
        ("VADER compound", "vader", results.main),
    ]
    if results.ablation:
        panels.append(("Judge, W×K at equal cost", "judge", results.ablation))
    width, height = _SIZE_INCHES
    figure = Figure(figsize=(width * len(panels), height), layout="constrained")
    for axes, (title, key, rows) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _bars(axes, title, key, rows)
    figure.savefig(path, dpi=_DPI)


def _bars(axes: Axes, title: str, key: str, rows: Sequence[Summary]) -> None:
    bars = [(row.condition, e) for row in rows if (e := row.estimates[key]) is not None]
    means = [e.mean for _, e in bars]
    errors = [[e.mean - e.low for _, e in bars], [e.high - e.mean for _, e in bars]]
    colors = [_HIGHLIGHT if name in (CBS, "4×4") else _COLOR for name, _ in bars]
    axes.bar(range(len(bars)), means, color=colors, yerr=errors, capsize=4, ecolor="#333333")
    axes.set_xticks(range(len(bars)), [name for name, _ in bars], fontsize=9)
    for i, (_, e) in enumerate(bars):
        axes.annotate(f"{e.mean:.2f}", (i, e.high), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=9)
    axes.set_title(title, fontsize=11)
    axes.margins(y=0.12)
    axes.axhline(0, color="#333333", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
