"""Win rates of every condition against the baseline, by a judge: means with 95 % intervals over prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from w2s_core.evaluation.metrics import Estimate, bootstrap, difference, proportion
from w2s_core.evaluation.run import Evaluation
from w2s_core.judges.judging import Judgement
from w2s_core.judges.length_control import Comparison, length_controlled_win_rate

T = TypeVar("T")
Key = tuple[str, int]  # prompt and seed
_TIE = 0.5


@dataclass(frozen=True, slots=True)
class Standing:
    """A condition in a judge's eyes. `compared`: its comparisons with the baseline, on which the win rates are.

    A win counts 1, a tie ½. `score` is a pointwise judge's mean, `difference` what it is above the baseline's, paired
    by prompt. All but the score are None for the baseline.
    """

    condition: str
    compared: int
    win_rate: Estimate | None
    length_controlled: Estimate | None
    score: Estimate | None
    difference: Estimate | None


@dataclass(frozen=True, slots=True)
class Findings:
    """What a judge finds. `without_value`: the number of judgements that have no value, by reason."""

    judge: str
    pairwise: bool
    standings: Sequence[Standing]
    without_value: Mapping[str, int]


def findings(evaluation: Evaluation, name: str, pairwise: bool, judgements: Sequence[Judgement]) -> Findings:
    """Sums up the judgements of one judge."""
    reasons: dict[str, int] = {}
    values: dict[str, dict[Key, float]] = {condition.name: {} for condition in evaluation.experiment.conditions}
    for j in judgements:
        if j.value is None:
            reasons[j.reason] = reasons.get(j.reason, 0) + 1
        else:
            values[j.condition][j.prompt, j.seed] = j.value
    lengths = {a.key: sum(map(len, a.texts)) for a in evaluation.answers}
    baseline = evaluation.experiment.baseline
    standings = []
    for condition, found in values.items():
        won = found if pairwise else _won(found, values[baseline])
        if condition == baseline:
            won = {}
        comparisons = {
            (prompt, seed): Comparison(share, lengths[condition, prompt, seed] - lengths[baseline, prompt, seed])
            for (prompt, seed), share in won.items()
        }
        standings.append(_standing(condition, comparisons, {} if pairwise else found, values[baseline]))
    return Findings(name, pairwise, standings, reasons)


def _won(ours: Mapping[Key, float], theirs: Mapping[Key, float]) -> dict[Key, float]:
    """Which answers score higher than the baseline's to the same prompt and seed."""
    return {
        key: _TIE if score == theirs[key] else float(score > theirs[key])
        for key, score in ours.items()
        if key in theirs
    }


def _standing(
    condition: str, comparisons: Mapping[Key, Comparison], scores: Mapping[Key, float], baseline: Mapping[Key, float]
) -> Standing:
    groups = _by_prompt(comparisons)
    paired = [key for key in comparisons if key in scores]
    return Standing(
        condition=condition,
        compared=len(comparisons),
        win_rate=proportion([[c.won for c in group] for group in groups]) if groups else None,
        length_controlled=length_controlled_win_rate(groups) if groups else None,
        score=bootstrap(_by_prompt(scores)) if scores else None,
        difference=difference(_by_prompt({k: scores[k] for k in paired}), _by_prompt({k: baseline[k] for k in paired}))
        if paired
        else None,
    )


def _by_prompt(values: Mapping[Key, T]) -> list[list[T]]:
    """The values of each prompt, in order of appearance."""
    groups: dict[str, list[T]] = {}
    for (prompt, _), value in values.items():
        groups.setdefault(prompt, []).append(value)
    return list(groups.values())
