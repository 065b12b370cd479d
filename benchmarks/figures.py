"""From trials to figures: medians, spreads, ratios of interleaved repeats, and whether a target is reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, slots=True)
class Trial:
    """One measurement of one side. `tokens` are committed ones (a row's share where rows are plain samples);
    `ended` tells how many answers stopped before their budget; `phases` are seconds, where the side knows them;
    `foreign` is the share of the machine that processes of others took meanwhile."""

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
    """Median and extremes of some repeats."""

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
    """One line of the table. `value` None: not measured, and `note` says why. `sides` are what it was made of."""

    name: str
    title: str
    target: float
    at_most: bool = False
    value: Spread | None = None
    sides: Mapping[str, Spread] = field(default_factory=dict)
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """By the median; None when not measured."""
        if self.value is None:
            return None
        return self.value.median <= self.target if self.at_most else self.value.median >= self.target


def ratios(top: Sequence[Trial], bottom: Sequence[Trial]) -> Spread:
    """The speeds' ratio, repeat by repeat: neighbours in time share what the machine did meanwhile."""
    return Spread.of([a.speed / b.speed for a, b in zip(top, bottom, strict=True)])


def speeds(trials: Sequence[Trial]) -> Spread:
    return Spread.of([trial.speed for trial in trials])


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed; nan of nothing."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]
