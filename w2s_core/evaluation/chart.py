"""Chart of the results: what each condition reaches for the tokens that it samples, with 95 % intervals."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from w2s_core.evaluation.metrics import METRICS, Estimate
from w2s_core.evaluation.results import COMPARED, Results
from w2s_core.evaluation.scoring import Summary
from w2s_core.evaluation.settings import BASE, BEST_OF, CBS, MAIN, WEAK_ALONE

_PANEL_INCHES, _LEGEND_INCHES, _DPI = (2.7, 2.5), 0.6, 100
_MARKERS = "osDv^<>PX*"


def draw(results: Results, path: Path) -> None:
    """Writes a PNG: a row of panels for each length, one panel per metric, over tokens sampled for an answer."""
    metrics = [metric for metric in METRICS if metric.key in COMPARED]
    rows = len(results.comparisons)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(metrics), height * rows + _LEGEND_INCHES), layout="constrained")
    panels = figure.subplots(rows, len(metrics), squeeze=False)
    for line, comparison in zip(panels, results.comparisons, strict=True):
        for axes, metric in zip(line, metrics, strict=True):
            for summary in comparison.summaries:
                _point(axes, summary, metric.key)
            axes.set_title(metric.label, fontsize=10)
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel(f"up to {comparison.max_tokens} tokens", fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("tokens sampled per answer", fontsize=8)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(path, dpi=_DPI)


def _point(axes: Axes, summary: Summary, key: str) -> None:
    value, cost = summary.estimates[key], summary.estimates["sampled"]
    if value is None or cost is None:
        return
    axes.errorbar(
        cost.mean,
        value.mean,
        yerr=[[value.mean - value.low], [value.high - value.mean]],
        fmt=_MARKERS[MAIN.index(summary.condition) % len(_MARKERS)],
        color=_color(summary.condition),
        label=summary.condition,
        capsize=3,
        markersize=6,
    )
    if summary.condition == BASE:
        _band(axes, value)


def _band(axes: Axes, base: Estimate) -> None:
    axes.axhspan(base.low, base.high, color="#9aa5b1", alpha=0.15, linewidth=0)


def _color(condition: str) -> str:
    if condition in (BASE, WEAK_ALONE):
        return "#6b7682"
    if condition in (BEST_OF, CBS):
        return "#d1495b" if condition == CBS else "#e9a23b"
    return "#2f6fb0" if condition.startswith("CBS") else "#2a9d8f"
