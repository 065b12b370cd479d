"""The results of an experiment, and their JSON form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from w2s_core.evaluation.metrics import Estimate, difference
from w2s_core.evaluation.scoring import ScoredAnswer, Summary, by_prompt, summarize
from w2s_core.evaluation.settings import ABLATION, BASE, BEST_OF, CBS, MAIN, Settings


@dataclass(frozen=True, slots=True)
class Results:
    """The results of one run.

    `differences` are CBS minus another method on a judge, paired by prompt. `aucs` are the judges' AUC on the test
    sentences. `wall_s` is the duration of the run in seconds.
    """

    settings: Settings
    aucs: Mapping[str, float]
    main: Sequence[Summary]
    ablation: Sequence[Summary]
    differences: Mapping[str, Estimate]
    scored: Sequence[ScoredAnswer]
    wall_s: float

    def judged(self, name: str) -> Estimate:
        """The judge's mean score of one method."""
        estimate = next(row for row in self.main if row.condition == name).estimates["judge"]
        assert estimate is not None  # the judge scores every answer
        return estimate


def build_results(
    settings: Settings, scored: Sequence[ScoredAnswer], aucs: Mapping[str, float], wall_s: float
) -> Results:
    """Summarizes the scored answers by method and shape, with the differences between methods."""
    by_name: dict[str, list[ScoredAnswer]] = {}
    for m in scored:
        by_name.setdefault(m.answer.condition.name, []).append(m)
    ablation = {name: by_name.get(name, []) for name in ABLATION} if settings.ablation_seeds else {}
    if ablation:  # 4×4 is CBS itself, limited to the seeds of the other shapes
        ablation["4×4"] = [m for m in by_name[CBS] if m.answer.seed < settings.ablation_seeds]
    return Results(
        settings,
        aucs,
        [summarize(name, by_name[name]) for name in MAIN],
        [summarize(name, rows) for name, rows in ablation.items()],
        {
            f"{key}: {CBS} − {other}": difference(by_prompt(by_name[CBS], key), by_prompt(by_name[other], key))
            for key in ("judge", "vader")
            for other in (BASE, BEST_OF)
        },
        scored,
        wall_s,
    )


def as_json(results: Results) -> dict[str, Any]:
    """Settings, summaries and every answer, for `json.dump`. Units: nats, seconds, tokens."""
    return {
        "settings": asdict(results.settings),
        "judges_auc": dict(results.aucs),
        "wall_s": results.wall_s,
        "methods": [asdict(row) for row in results.main],
        "ablation": [asdict(row) for row in results.ablation],
        "differences": {name: asdict(estimate) for name, estimate in results.differences.items()},
        "answers": [_answer(m) for m in results.scored],
    }


def _answer(scored: ScoredAnswer) -> dict[str, Any]:
    answer, hypothesis = scored.answer, scored.answer.hypothesis
    return {
        "method": answer.condition.name,
        "opener": answer.opener,
        "seed": answer.seed,
        "text": hypothesis.text,
        "tokens": len(hypothesis.tokens),
        "finish_reason": hypothesis.finish_reason,
        "ended": hypothesis.ended,
        **scored.values,
    }
