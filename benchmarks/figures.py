"""Statistics of trials: medians, spreads and ratios of repeats, and whether a target is reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, slots=True)
class Trial:
    """One measurement of one system.

    `tokens` are the committed ones (of plain samples, one row's share). `ended`: answers that stopped before their
    budget. `phases`: seconds by phase, if the system reports them. `foreign`: the share of the machine's processors
    that other processes used in the meantime.
    """

    tokens: float
    seconds: float
    ended: int = 0
    phases: Mapping[str, float] = field(default_factory=dict)
    foreign: float = 0.0

    @property
    def speed(self) -> float:
        """Committed tokens per second."""
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, minimum and maximum of repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} .. {self.high:.3g})"


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the results. If `value` is None it was not measured and `note` says why.

    `systems` are the speeds of the systems that it was computed from.
    """

    name: str
    title: str
    target: float
    at_most: bool = False
    value: Spread | None = None
    systems: Mapping[str, Spread] = field(default_factory=dict)
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches the target, None if it was not measured."""
        if self.value is None:
            return None
        return self.value.median <= self.target if self.at_most else self.value.median >= self.target


def ratios(top: Sequence[Trial], bottom: Sequence[Trial]) -> Spread:
    """The ratio of speeds, repeat by repeat, because trials close in time saw the machine in the same condition."""
    return Spread.of([a.speed / b.speed for a, b in zip(top, bottom, strict=True)])


def speeds(trials: Sequence[Trial]) -> Spread:
    return Spread.of([trial.speed for trial in trials])


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed, or nan if there are no values."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]
