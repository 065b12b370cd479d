"""Chart of quality against cost as SVG: each condition's win rate over the tokens that it samples for an answer.

It has no text of models or configurations, and draws its axes in the colour of the page (`currentColor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

from w2s_core.evaluation.metrics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES = (5.2, 3.1)
_INK = "#123456"  # replaced below


@dataclass(frozen=True, slots=True)
class Point:
    """A condition: its tokens sampled per answer, its win rate, and its colour. None for the baseline's win rate."""

    sampled: Estimate
    win_rate: Estimate | None
    color: str


def cost_chart(points: Sequence[Point]) -> str:
    """The chart as an `<svg>` element. Needs matplotlib."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    with mpl.rc_context(
        {
            "svg.hashsalt": "w2s",  # ids that are the same in every run
            "text.color": _INK,
            "axes.labelcolor": _INK,
            "axes.edgecolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
        }
    ):
        figure = Figure(figsize=_INCHES, layout="constrained")
        axes = figure.subplots()
        axes.axhline(0.5, color=_INK, linewidth=0.8, linestyle=(0, (4, 4)), alpha=0.6)
        for point in points:
            _draw(axes, point)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens:,.0f}"))
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("tokens sampled per answer")
        axes.set_ylabel("win rate")
        axes.spines[["top", "right"]].set_visible(False)
        image = StringIO()
        figure.savefig(image, format="svg", transparent=True, metadata={"Date": None})
    svg = image.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")


def _draw(axes: Axes, point: Point) -> None:
    cost, rate = point.sampled, point.win_rate or Estimate(0.5, 0.5, 0.5)
    axes.errorbar(
        cost.mean,
        rate.mean,
        xerr=[[cost.mean - cost.low], [cost.high - cost.mean]],
        yerr=[[rate.mean - rate.low], [rate.high - rate.mean]],
        fmt="o" if point.win_rate else "D",
        color=point.color,
        markersize=8,
        elinewidth=1.6,
    )
