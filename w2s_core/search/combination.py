"""Combines the scores of several scorers into one: their weighted sum, their minimum, or a robust mixture (RMOD)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev

from w2s_core.guidance import Guidance
from w2s_core.types import Hypothesis

_STEPS, _GRADIENT_BOUND = 10, 10.0


def combined_scores(pool: Sequence[Hypothesis], guidance: Guidance) -> list[float]:
    """The score of each hypothesis by `guidance.combine`, in nats.

    "min" and "robust" compare the scorers' weighted scores in units of their standard deviations over the pool, times
    the mean of those, so that `repetition` and `fluency` keep their meaning.
    """
    if guidance.combine == "sum" or len(guidance.weights) < 2:
        return [y.score for y in pool]
    columns = [[weight * y.scores.get(name, 0.0) for y in pool] for name, weight in guidance.weights.items()]
    # A scorer to which all candidates are alike, or that has no weight, has no say.
    varying = [(column, deviation) for column in columns if (deviation := pstdev(column))]
    if len(varying) < 2:
        return [y.score for y in pool]
    deviations = [deviation for _, deviation in varying]
    standardised = [[(value - fmean(column)) / deviation for value in column] for column, deviation in varying]
    rows = list(zip(*standardised, strict=True))
    if guidance.combine == "min":
        values = [min(row) for row in rows]
    else:
        mixture = robust_mixture(rows)
        values = [sum(w * v for w, v in zip(mixture, row, strict=True)) for row in rows]
    unit = fmean(deviations)
    return [unit * value for value in values]


def robust_mixture(rows: Sequence[Sequence[float]], temperature: float = 1.0) -> list[float]:
    """The worst mixture of objectives for the candidates' values `rows`, by ten steps of RMOD (arXiv:2503.08796).

    θ ← θ − clip(∇ log mean_k exp(λ · V_k · softmax(θ)), ±10) / √i from θ = 0, with λ = `temperature`; the result is
    softmax(θ).
    """
    theta = [0.0] * len(rows[0])
    for step in range(1, _STEPS + 1):
        mixture = _softmax(theta)
        values = [temperature * sum(w * v for w, v in zip(mixture, row, strict=True)) for row in rows]
        chances = _softmax(values)
        means = [sum(p * row[j] for p, row in zip(chances, rows, strict=True)) for j in range(len(theta))]
        overall = sum(w * mean for w, mean in zip(mixture, means, strict=True))
        for j, (w, mean) in enumerate(zip(mixture, means, strict=True)):
            gradient = temperature * w * (mean - overall)
            theta[j] -= max(-_GRADIENT_BOUND, min(_GRADIENT_BOUND, gradient)) / math.sqrt(step)
    return _softmax(theta)


def _softmax(values: Sequence[float]) -> list[float]:
    largest = max(values)
    powers = [math.exp(value - largest) for value in values]
    total = sum(powers)
    return [power / total for power in powers]
