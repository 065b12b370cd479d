"""Charts of the load benchmarks: speed and latency by concurrency, and measured against predicted cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from benchmarks.load_levels import LoadLevel, Sweeps
    from benchmarks.memory import KVUsage

_GUIDED, _PLAIN, _PREDICTED = "#2f6fb0", "#9aa5b1", "#c0392b"
_PANEL_INCHES, _DPI = (4.2, 3.4), 110
Value = Callable[["LoadLevel"], float]


def draw_load(sweeps: Sweeps, path: Path) -> None:
    """Writes a PNG of speed and latencies by number of streams."""
    _load(sweeps.concurrency).savefig(path, dpi=_DPI)


def draw_cost(sweeps: Sweeps, path: Path) -> None:
    """Writes a PNG of time by length, rows, chunks and streams, and of KV memory by length."""
    _cost(sweeps).savefig(path, dpi=_DPI)


def _panels(count: int, columns: int = 3) -> tuple[Figure, list[Any]]:
    width, height = _PANEL_INCHES
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    subplots = list(figure.subplots(rows, columns).flat)
    for spare in subplots[count:]:
        spare.set_axis_off()
    axes = subplots[:count]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xscale("log", base=2)
    return figure, axes


def _load(levels: Sequence[LoadLevel]) -> Figure:
    figure, (speed, first, gap) = _panels(3)
    guided = [level for level in levels if level.load.pair is not None]
    plain = [level for level in levels if level.load.pair is None]
    for color, name, group in ((_GUIDED, "guided", guided), (_PLAIN, "plain", plain)):
        x = [level.load.streams for level in group]
        speed.plot(x, [level.speed for level in group], "o-", color=color, label=name)
        for axes, low, high in ((first, "first_p50", "first_p99"), (gap, "gap_p50", "gap_p99")):
            axes.plot(x, [getattr(level, low) for level in group], "o-", color=color, label=f"{name}, p50")
            axes.plot(x, [getattr(level, high) for level in group], "o--", color=color, label=f"{name}, p99")
    for axes, title in (
        (speed, "committed tokens/s"),
        (first, "seconds to the first text"),
        (gap, "seconds between texts"),
    ):
        _finish(axes, title, "streams at once")
    return figure


def _cost(sweeps: Sweeps) -> Figure:
    """Predicted curves are scaled to the largest request: constant in T and in chunks, linear in rows."""
    figure, (length, rows, chunks, streams, memory) = _panels(5)
    guided = [level for level in sweeps.concurrency if level.load.pair is not None]
    _panel(length, sweeps.length, lambda level: level.load.tokens, per_token, lambda _: 1.0)
    _panel(rows, sweeps.rows, lambda level: level.load.rows, per_token, lambda x: x)
    _panel(chunks, sweeps.chunks, lambda level: level.load.tokens / level.load.length, per_token, lambda _: 1.0)
    _panel(streams, guided, lambda level: level.load.rows * level.load.streams, per_step, lambda x: x)
    for axes, title, label in (
        (length, "ms per committed token, by T", "tokens T"),
        (rows, "ms per committed token, by rows", "rows W·K"),
        (chunks, "ms per committed token, by chunks", "chunks of one answer"),
        (streams, "ms per token of every stream, by all rows", "rows of all streams"),
    ):
        _finish(axes, title, label)
    _memory(memory, sweeps.memory)
    return figure


def _memory(axes: Any, usages: Sequence[KVUsage]) -> None:
    """One set of lines per prompt length."""
    for prompt, marker in zip(sorted({usage.load.prompt for usage in usages}), "os", strict=False):
        group = [usage for usage in usages if usage.load.prompt == prompt]
        x = [usage.load.tokens for usage in group]
        axes.plot(x, [usage.peak_tokens for usage in group], f"{marker}-", color=_GUIDED, label=f"held, P={prompt}")
        axes.plot(
            x, [usage.predicted for usage in group], f"{marker}--", color=_PREDICTED, label=f"predicted, P={prompt}"
        )
        axes.plot(
            x, [usage.published for usage in group], f"{marker}:", color=_PLAIN, label=f"as published, P={prompt}"
        )
    _finish(axes, "tokens of KV held at most, by T", "tokens T")
    axes.set_yscale("log")
    axes.set_ylim(100, 100_000)  # with room for the legend


def per_token(level: LoadLevel) -> float:
    """Milliseconds per committed token."""
    return 1000 / level.speed


def per_step(level: LoadLevel) -> float:
    """Milliseconds per committed token of every stream."""
    return 1000 / level.speed * level.load.streams


def _panel(axes: Any, levels: Sequence[LoadLevel], x: Value, y: Value, shape: Callable[[float], float]) -> None:
    if not levels:
        return
    xs, ys = [x(level) for level in levels], [y(level) for level in levels]
    largest = max(range(len(xs)), key=xs.__getitem__)
    scale = ys[largest] / shape(xs[largest])
    axes.plot(sorted(xs), [scale * shape(value) for value in sorted(xs)], "--", color=_PREDICTED, label="predicted")
    axes.plot(xs, ys, "o-", color=_GUIDED, label="measured")


def _finish(axes: Any, title: str, label: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(label, fontsize=9)
    axes.set_ylim(bottom=0, top=1.3 * axes.get_ylim()[1])  # with room for the legend
    ticks = sorted({float(value) for line in axes.get_lines() for value in line.get_xdata()})
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks], fontsize=8)
    axes.minorticks_off()
    if ticks:
        axes.legend(fontsize=8, loc="upper left", ncols=2)
