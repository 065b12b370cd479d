"""The metrics, and their means with confidence intervals by a bootstrap over prompts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_RESAMPLES = 10_000
_Z = 1.959964  # of 95 %, two-sided
_SEED = 2405_19262
_WORD = re.compile(r"\w+(?:'\w+)*")

Groups = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of one answer: its key in the JSON file, its label in tables and its number of decimals there."""

    key: str
    label: str
    digits: int


_LOGPROB = Metric("logprob", "log p per token", 2)
_DISTINCT_2 = Metric("distinct2", "distinct-2", 3)
_ENDED = Metric("ended", "share that ended", 2)
_SAMPLED = Metric("sampled", "tokens sampled", 0)
_SECONDS = Metric("seconds", "seconds", 1)

RUN_METRICS = (_ENDED, Metric("tokens", "tokens", 0), _SAMPLED, _SECONDS, _LOGPROB, _DISTINCT_2)
"""Of any answer, by its record alone."""
METRICS = (
    Metric("judge", "judge, P(positive)", 3),
    Metric("vader", "VADER, −1 … 1", 3),
    Metric("implicit", "implicit score, nats", 1),
    _LOGPROB,
    _DISTINCT_2,
    _ENDED,
    Metric("words", "words", 0),
    _SAMPLED,
    _SECONDS,
)
"""Of the sentiment experiment."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % interval [low, high], in the metric's unit."""

    mean: float
    low: float
    high: float


def bootstrap(groups: Groups, *, resamples: int = _RESAMPLES) -> Estimate:
    """The mean of all values, with the 2.5 % and 97.5 % quantiles of the mean over resampled groups.

    A group holds the values of one prompt. Groups are resampled, not values, because answers to the same prompt are
    correlated (cluster bootstrap).
    """
    sums = np.array([sum(group) for group in groups])
    sizes = np.array([len(group) for group in groups])
    resampled = np.random.default_rng(_SEED).integers(len(groups), size=(resamples, len(groups)))
    means = sums[resampled].sum(1) / sizes[resampled].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(sums.sum() / sizes.sum()), float(low), float(high))


def proportion(groups: Groups) -> Estimate:
    """The mean of values in [0, 1], with its Wilson score interval (Wilson 1927) of as many trials as there are groups.

    A group holds the values of one prompt, whose answers are correlated: they count as one trial. Unlike the bootstrap,
    the interval has a width where all values are 0 or all are 1, and its coverage holds for few prompts.
    """
    return wilson(float(np.concatenate([np.asarray(group, dtype=float) for group in groups]).mean()), len(groups))


def wilson(mean: float, n: int) -> Estimate:
    """The mean of `n` trials in [0, 1] with its Wilson score interval."""
    centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n**2))
    return Estimate(mean, max(0.0, centre - half), min(1.0, centre + half))


def difference(ours: Groups, theirs: Groups) -> Estimate:
    """The paired difference ours − theirs of the means of each prompt; both are in the same order of prompts."""
    return bootstrap([[float(np.mean(a) - np.mean(b))] for a, b in zip(ours, theirs, strict=True)])


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def distinct_2(texts: Sequence[str]) -> float | None:
    """Distinct word bigrams ÷ all word bigrams of the texts (Li et al. 2016), None if there are none.

    Bigrams do not span two texts.
    """
    pairs = [pair for tokens in map(words, texts) for pair in pairwise(tokens)]
    return len(set(pairs)) / len(pairs) if pairs else None
