"""Scores answers with every metric, and summarizes them by condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from w2s_core.aio import bounded
from w2s_core.evaluation.generation import Answer
from w2s_core.evaluation.likelihood import LikelihoodEvaluator
from w2s_core.evaluation.metrics import METRICS, Estimate, bootstrap, distinct_2, words
from w2s_core.evaluation.settings import WEAK

Judge = Callable[[Sequence[str]], list[float]]
Values = Mapping[str, float | None]
_CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """An answer with its value of every metric by key, None where it has none (no word pair, no token)."""

    answer: Answer
    values: Values


@dataclass(frozen=True, slots=True)
class Summary:
    """The mean of every metric over one condition's answers."""

    condition: str
    answers: int
    estimates: Mapping[str, Estimate | None]


async def score_answers(
    answers: Sequence[Answer],
    evaluator: LikelihoodEvaluator,
    judges: Mapping[str, Judge],
    progress: Callable[[], object],
) -> list[ScoredAnswer]:
    """Scores all answers, in order. `judges` maps "judge" and "vader" to functions that score texts."""

    async def model_scores(answer: Answer) -> dict[str, float | None]:
        implicit = await evaluator.implicit_score(answer.opener, answer.hypothesis)
        logprob = await _logprob(answer, evaluator)
        progress()
        return {"implicit": implicit, "logprob": logprob}

    texts = [answer.judged_text for answer in answers]
    judgements = {key: judge(texts) for key, judge in judges.items()}
    scores = await bounded(model_scores, answers, _CONCURRENCY)
    return [
        ScoredAnswer(answer, {key: values[i] for key, values in judgements.items()} | scores[i] | _counts(answer))
        for i, answer in enumerate(answers)
    ]


async def _logprob(answer: Answer, evaluator: LikelihoodEvaluator) -> float | None:
    """log p_large per token in nats, without the EOS token, so that truncated answers are comparable with others."""
    hypothesis = answer.hypothesis
    if answer.condition.model == WEAK:
        return await evaluator.log_likelihood(answer.opener, hypothesis.text)
    count = len(hypothesis.tokens)
    return sum(hypothesis.logprobs[:count]) / count if count else None


def _counts(answer: Answer) -> dict[str, float | None]:
    text = answer.hypothesis.text
    return {
        "distinct2": distinct_2([text]),
        "ended": float(answer.hypothesis.finish_reason == "stop"),
        "words": float(len(words(text))),
        "sampled": float(answer.sampled_tokens),
        "seconds": answer.seconds,
    }


def summarize(name: str, scored: Sequence[ScoredAnswer]) -> Summary:
    """The summary of one condition, with confidence intervals over its prompts."""
    return Summary(name, len(scored), {metric.key: _estimate(scored, metric.key) for metric in METRICS})


def by_prompt(scored: Sequence[ScoredAnswer], key: str) -> dict[str, list[float]]:
    """A metric's values by opener, in order of appearance. Openers without a value are left out."""
    groups: dict[str, list[float]] = {}
    for m in scored:
        value = m.values[key]
        if value is not None:
            groups.setdefault(m.answer.opener, []).append(value)
    return groups


def _estimate(scored: Sequence[ScoredAnswer], key: str) -> Estimate | None:
    groups = by_prompt(scored, key)
    return bootstrap(list(groups.values())) if groups else None
