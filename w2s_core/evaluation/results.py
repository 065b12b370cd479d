"""What an experiment found, ready to be printed, written and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from w2s_core.evaluation.measuring import Measured, Summary, by_prompt, summarize
from w2s_core.evaluation.metrics import Estimate, difference
from w2s_core.evaluation.settings import ABLATION, BASE, BEST_OF, CBS, MAIN, Settings


@dataclass(frozen=True, slots=True)
class Results:
    """`differences` are CBS minus another method on a judge, paired by prompt; `aucs` are the judges' on the test
    sentences; `wall_s` the whole run's seconds."""

    settings: Settings
    aucs: Mapping[str, float]
    main: Sequence[Summary]
    ablation: Sequence[Summary]
    differences: Mapping[str, Estimate]
    measured: Sequence[Measured]
    wall_s: float

    def judged(self, name: str) -> Estimate:
        """The judge's mean of one method; it has an opinion of every answer."""
        estimate = next(row for row in self.main if row.condition == name).estimates["judge"]
        assert estimate is not None
        return estimate


def conclude(settings: Settings, measured: Sequence[Measured], aucs: Mapping[str, float], wall_s: float) -> Results:
    """Means, differences, ablation from the answers' values."""
    by_name: dict[str, list[Measured]] = {}
    for m in measured:
        by_name.setdefault(m.answer.condition.name, []).append(m)
    ablation = {name: by_name.get(name, []) for name in ABLATION} if settings.ablation_seeds else {}
    if ablation:  # 4×4 is CBS itself, on the seeds that the other shapes have
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
        measured,
        wall_s,
    )


def as_json(results: Results) -> dict[str, Any]:
    """All figures, all settings, every answer; nats, seconds, tokens."""
    return {
        "settings": asdict(results.settings),
        "judges_auc": dict(results.aucs),
        "wall_s": results.wall_s,
        "methods": [asdict(row) for row in results.main],
        "ablation": [asdict(row) for row in results.ablation],
        "differences": {name: asdict(estimate) for name, estimate in results.differences.items()},
        "answers": [_answer(m) for m in results.measured],
    }


def _answer(measured: Measured) -> dict[str, Any]:
    answer, hypothesis = measured.answer, measured.answer.hypothesis
    return {
        "method": answer.condition.name,
        "opener": answer.opener,
        "seed": answer.seed,
        "text": hypothesis.text,
        "tokens": len(hypothesis.tokens),
        "finish_reason": hypothesis.finish_reason,
        "ended": hypothesis.ended,
        **measured.values,
    }
