"""The results of an experiment, and their JSON form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from w2s_core.evaluation.metrics import Estimate, difference
from w2s_core.evaluation.scoring import ScoredAnswer, Summary, by_prompt, summarize
from w2s_core.evaluation.settings import (
    ABLATION,
    BASE,
    BEST_OF,
    CBS,
    MAIN,
    WEAK_ALONE,
    MethodAtLength,
    Settings,
    methods,
)

COMPARED = ("judge", "vader", "distinct2", "ended", "logprob")


@dataclass(frozen=True, slots=True)
class Difference:
    """What a condition has beyond another one in each of the metrics COMPARED, paired by prompt."""

    condition: str
    other: str
    estimates: Mapping[str, Estimate | None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All conditions at one length: answers of at most `max_tokens` tokens."""

    max_tokens: int
    summaries: Sequence[Summary]
    differences: Sequence[Difference]


@dataclass(frozen=True, slots=True)
class Results:
    """The results of one run: `comparisons` by length, and the ablation at the first of them.

    `aucs` are the judges' AUC on the test sentences. `wall_s` is the duration of the run in seconds.
    """

    settings: Settings
    aucs: Mapping[str, float]
    comparisons: Sequence[Comparison]
    ablation: Sequence[Summary]
    scored: Sequence[ScoredAnswer]
    wall_s: float


def build_results(
    settings: Settings, scored: Sequence[ScoredAnswer], aucs: Mapping[str, float], wall_s: float
) -> Results:
    """Summarizes the scored answers by length, method and shape, with the differences between methods."""
    by_label: dict[str, list[ScoredAnswer]] = {method.label: [] for method in methods(settings)}
    for m in scored:
        by_label[m.answer.condition].append(m)
    by_name = {(method.max_tokens, method.name): by_label[method.label] for method in methods(settings)}
    shortest = settings.max_tokens[0]
    ablation = {name: by_name.get((shortest, name), []) for name in ABLATION} if settings.ablation_seeds else {}
    if ablation:  # 4×4 is CBS itself, limited to the seeds of the other shapes
        ablation["4×4"] = [m for m in by_name[shortest, CBS] if m.answer.seed < settings.ablation_seeds]
    comparisons = [
        _comparison(length, {name: by_name[length, name] for name in MAIN}) for length in settings.max_tokens
    ]
    shapes = [summarize(name, rows) for name, rows in ablation.items()]
    return Results(settings, aucs, comparisons, shapes, [m for rows in by_label.values() for m in rows], wall_s)


def _comparison(length: int, scored: Mapping[str, Sequence[ScoredAnswer]]) -> Comparison:
    others = {
        BASE: [name for name in scored if name != BASE],
        CBS: [name for name in scored if name not in (BASE, WEAK_ALONE, BEST_OF, CBS)],
    }
    differences = [
        Difference(name, other, {key: _difference(scored[name], scored[other], key) for key in COMPARED})
        for other, names in others.items()
        for name in names
    ]
    return Comparison(length, [summarize(name, rows) for name, rows in scored.items()], differences)


def _difference(ours: Sequence[ScoredAnswer], theirs: Sequence[ScoredAnswer], key: str) -> Estimate | None:
    """Over the openers that have a value in both; None if there are none."""
    groups, others = by_prompt(ours, key), by_prompt(theirs, key)
    common = [opener for opener in groups if opener in others]
    return difference([groups[o] for o in common], [others[o] for o in common]) if common else None


def as_json(results: Results) -> dict[str, Any]:
    """Settings, summaries and every answer, for `json.dump`. Units: nats, seconds, tokens."""
    by_label = {method.label: method for method in methods(results.settings)}
    return {
        "settings": asdict(results.settings),
        "judges_auc": dict(results.aucs),
        "wall_s": results.wall_s,
        "comparisons": [asdict(comparison) for comparison in results.comparisons],
        "ablation": [asdict(row) for row in results.ablation],
        "answers": [_answer(m, by_label[m.answer.condition]) for m in results.scored],
    }


def _answer(scored: ScoredAnswer, method: MethodAtLength) -> dict[str, Any]:
    answer = scored.answer
    (text,), (reason,) = answer.texts, answer.finish_reasons
    return {
        "method": method.name,
        "max_tokens": method.max_tokens,
        "opener": answer.prompt,
        "seed": answer.seed,
        "text": text,
        "finish_reason": reason,
        **scored.values,
    }
