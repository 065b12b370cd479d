"""Checks a pair on preference data: how often the better answer scores higher, how early, and whether length is all.

A pair is worth serving if log π_tuned − log π_untuned ranks answers as people do, and does so on their beginnings, by
which a search selects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from w2s_core.aio import bounded
from w2s_core.errors import ContextLengthError, PairContextLengthError
from w2s_core.evaluation.metrics import Estimate, bootstrap, proportion, wilson
from w2s_core.interfaces import Scorer
from w2s_core.pairs.preferences import Answer
from w2s_core.types import Hypothesis

Verdict: TypeAlias = Literal["steers", "weak", "likes length", "exchanged", "equal", "too few"]
PREFIX_WORDS = (2, 5, 10, 20, 50)
"""Lengths, in words, of the beginnings that are scored beside whole answers."""
Values: TypeAlias = npt.NDArray[Any]
_CONCURRENCY = 8
_LENGTH_PENALTIES = (0.0, 0.5, 1.0)
_NOTABLE_AUC = 0.01
_EQUAL_NATS = 1e-6
ENOUGH = 20
"""Good answers, and bad ones, that a verdict takes. Of fewer, resampling gives intervals that are too narrow."""
_WEAK_AUC = 0.6
_RESAMPLES, _SEED = 1000, 2405_19262


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """An answer with its scores in nats: of its beginnings of PREFIX_WORDS words, then of the whole and its end."""

    answer: Answer
    scores: tuple[float, ...]

    @property
    def words(self) -> int:
        return len(self.answer.text.split())


@dataclass(frozen=True, slots=True)
class PairCheck:
    """What a pair tells. `accuracy`: the share of comparisons in which the chosen answer scores higher, ties one half;
    `margin`: by how many nats. Both are None where the data has no comparisons.

    `auc`: the probability that a good answer scores above a bad one. `auc_by_words` has it for beginnings. Of fewer
    than ENOUGH good or bad answers the verdict is "too few".
    `length_correlation`: Spearman's, of score and words. `length_penalty`: the one of 0, 0.5 and 1 with which the pair
    tells most. `too_long`: answers that did not fit the pair's context and were left out.
    """

    answers: int
    accuracy: Estimate | None
    margin: Estimate | None
    auc: Estimate
    auc_by_words: dict[int, float]
    length_correlation: float
    length_penalty: float
    verdict: Verdict
    too_long: int


async def score_answers(
    scorer: Scorer, answers: Sequence[Answer], progress: Callable[[], object]
) -> list[ScoredAnswer | None]:
    """The answers' scores, in order; None for one that does not fit the pair's context."""

    async def score(answer: Answer) -> ScoredAnswer | None:
        words = answer.text.split(" ")
        texts = [" ".join(words[:count]) for count in PREFIX_WORDS]
        hypotheses = [Hypothesis(text=text) for text in texts] + [Hypothesis(text=answer.text, ended=True)]
        try:
            scorer.check(answer.prompt, 1)
            async with scorer.open(answer.prompt) as scoring:
                scores = await scoring.score(hypotheses)
        except (ContextLengthError, PairContextLengthError):
            return None
        finally:
            progress()
        return ScoredAnswer(answer, tuple(s.total for s in scores))

    return await bounded(score, answers, _CONCURRENCY)


def check(scored: Sequence[ScoredAnswer], too_long: int = 0) -> PairCheck:
    """Sums up the scores. `scored` has good answers and bad ones."""
    scores = np.array([s.scores for s in scored])
    good = np.array([s.answer.good for s in scored])
    words = np.array([s.words for s in scored], dtype=float)
    whole = scores[:, -1]
    comparisons = _comparisons(scored)
    differences = np.array([whole[i] - whole[j] for i, j in comparisons])
    correlation = _spearman(whole, words)
    auc = _auc_interval(whole, good)
    return PairCheck(
        answers=len(scored),
        accuracy=proportion([[_won(d)] for d in differences]) if comparisons else None,
        margin=bootstrap([[float(d)] for d in differences]) if comparisons else None,
        auc=auc,
        auc_by_words={n: _auc(scores[:, i], good) for i, n in enumerate(PREFIX_WORDS) if np.any(words > n)},
        length_correlation=correlation,
        length_penalty=_best_length_penalty(whole, words, good),
        verdict=_verdict(whole, words, good, auc),
        too_long=too_long,
    )


def _comparisons(scored: Sequence[ScoredAnswer]) -> list[tuple[int, int]]:
    """The indices of the chosen and the rejected answer of each comparison of which both were scored."""
    places: dict[int, dict[bool, int]] = {}
    for i, s in enumerate(scored):
        if s.answer.partner is not None:
            places.setdefault(s.answer.partner, {})[s.answer.good] = i
    return [(both[True], both[False]) for both in places.values() if len(both) == 2]


def _won(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def _best_length_penalty(scores: Values, words: Values, good: Values) -> float:
    """The smallest of the exponents with which the AUC is within a hundredth of the best."""
    aucs = {alpha: _auc(scores / np.maximum(words, 1.0) ** alpha, good) for alpha in _LENGTH_PENALTIES}
    return next(alpha for alpha, value in aucs.items() if value >= max(aucs.values()) - _NOTABLE_AUC)


def _auc(values: Values, good: Values) -> float:
    """ROC AUC by ranks (Mann–Whitney); ties count one half. NaN where one class is missing."""
    positives = int(good.sum())
    if not 0 < positives < len(good):
        return float("nan")
    ranks = _ranks(values)
    return float((ranks[good].sum() - positives * (positives + 1) / 2) / (positives * (len(good) - positives)))


def _ranks(values: Values) -> Values:
    """Ranks from 1 on; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: Values = (last - (counts - 1) / 2)[inverse]
    return ranks


def _spearman(one: Values, other: Values) -> float:
    """The correlation of the ranks; 0 where one of the two does not vary."""
    ranks = _ranks(one), _ranks(other)
    if not all(np.ptp(r) for r in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _auc_interval(values: Values, good: Values) -> Estimate:
    """The AUC with its 95 % interval, by a bootstrap over answers of each class.

    Of few answers, and where nearly all are in order, resampling gives too little width. There it is Wilson's interval
    of as many trials as the smaller class has answers.
    """
    auc, few = _auc(values, good), _fewer(good)
    if few < ENOUGH:
        return wilson(auc, few)
    generator = np.random.default_rng(_SEED)
    classes = np.flatnonzero(good), np.flatnonzero(~good)
    resampled = [np.concatenate([generator.choice(c, len(c)) for c in classes]) for _ in range(_RESAMPLES)]
    low, high = np.quantile([_auc(values[i], good[i]) for i in resampled], (0.025, 0.975))
    return Estimate(auc, float(low), float(high)) if low > 0 and high < 1 else wilson(auc, few)


def _fewer(good: Values) -> int:
    """The number of good answers or of bad ones, whichever is less."""
    return int(min(good.sum(), (~good).sum()))


def _verdict(scores: Values, words: Values, good: Values, auc: Estimate) -> Verdict:
    if np.abs(scores).max() < _EQUAL_NATS:
        return "equal"
    if _fewer(good) < ENOUGH:
        return "too few"
    if auc.high < 0.5:
        return "exchanged"
    if auc.low <= 0.5 or auc.mean < _WEAK_AUC:
        return "weak"
    return "likes length" if _auc(_without_length(scores, words), good) < _WEAK_AUC else "steers"


def _without_length(scores: Values, words: Values) -> Values:
    """What the number of words does not explain of the scores, linearly."""
    design = np.stack([np.ones_like(words), words], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, scores, rcond=None)
    rest: Values = scores - design @ coefficients
    return rest
