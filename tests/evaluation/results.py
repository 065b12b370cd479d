"""A made-up experiment whose figures are easy to verify."""

from __future__ import annotations

from w2s_core.evaluation.records import AnswerRecord
from w2s_core.evaluation.results import Results, build_results
from w2s_core.evaluation.scoring import ScoredAnswer
from w2s_core.evaluation.settings import BASE, BEST_OF, CBS, WEAK_ALONE, Settings, methods

JUDGED = {BASE: 0.4, WEAK_ALONE: 0.8, BEST_OF: 0.6, CBS: 0.7}


def made_up(judged: dict[str, float] = JUDGED, spread: float = 0.01, **settings: int) -> Results:
    """Four openers × 2 seeds; each method's answers are judged alike but for ± `spread` from opener to opener."""
    chosen = Settings(prompts=4, max_tokens=(40, 160), **settings)
    scored = [
        ScoredAnswer(
            AnswerRecord(opener, method.label, seed, (f" {method.name} text",), ("stop",), 9, 3, 16, 2.0),
            {
                "judge": judged.get(method.name, 0.5) + (spread if i % 2 else -spread),
                "vader": 0.1,
                "implicit": float(seed),
                "logprob": None if method.name == WEAK_ALONE else -2.5,
                "distinct2": 1.0,
                "ended": 1.0,
                "words": 2.0,
                "sampled": 16.0,
                "seconds": 2.0,
            },
        )
        for method in methods(chosen)
        for i, opener in enumerate(chosen.openers)
        for seed in range(method.seeds)
    ]
    return build_results(chosen, scored, {"judge": 0.8, "vader": 0.7}, wall_s=120.0)
