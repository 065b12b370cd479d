"""Scores answers with every metric, and summarizes them by condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from w2s_core.aio import bounded
from w2s_core.evaluation.likelihood import LikelihoodEvaluator
from w2s_core.evaluation.metrics import METRICS, Estimate, Metric, bootstrap, distinct_2, words
from w2s_core.evaluation.records import AnswerRecord
from w2s_core.types import Hypothesis

Judge = Callable[[Sequence[str]], list[float]]
Values = Mapping[str, float | None]
_CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """An answer with its value of every metric by key, None where it has none (no word pair, no token)."""

    answer: AnswerRecord
    values: Values


@dataclass(frozen=True, slots=True)
class Summary:
    """The mean of every metric over one condition's answers."""

    condition: str
    answers: int
    estimates: Mapping[str, Estimate | None]


async def score_answers(
    answers: Sequence[AnswerRecord],
    evaluator: LikelihoodEvaluator,
    judges: Mapping[str, Judge],
    progress: Callable[[], object],
) -> list[ScoredAnswer]:
    """Scores the answers to openers, in order. `judges` maps "judge" and "vader" to functions that score texts.

    An answer that does not tell its log-probability under the large model, because another model wrote it, gets it.
    """

    async def model_scores(answer: AnswerRecord) -> dict[str, float | None]:
        (text,), (reason,) = answer.texts, answer.finish_reasons
        implicit = await evaluator.implicit_score(answer.prompt, Hypothesis(text=text, ended=reason == "stop"))
        logprob = answer.logprob
        if logprob is None:
            logprob = await evaluator.log_likelihood(answer.prompt, text)
        progress()
        return {"implicit": implicit, "logprob": logprob}

    texts = [answer.prompt + answer.texts[0] for answer in answers]
    judgements = {key: judge(texts) for key, judge in judges.items()}
    scores = await bounded(model_scores, answers, _CONCURRENCY)
    return [
        ScoredAnswer(answer, {key: values[i] for key, values in judgements.items()} | counts(answer) | scores[i])
        for i, answer in enumerate(answers)
    ]


def counts(answer: AnswerRecord) -> dict[str, float | None]:
    """The metrics that an answer's record alone tells, by key. Word pairs do not span two turns."""
    return {
        "logprob": answer.logprob,
        "distinct2": distinct_2(answer.texts),
        "ended": sum(reason == "stop" for reason in answer.finish_reasons) / len(answer.finish_reasons),
        "words": float(sum(len(words(text)) for text in answer.texts)),
        "tokens": float(answer.completion_tokens),
        "sampled": float(answer.sampled_tokens),
        "seconds": answer.seconds,
    }


def summarize(name: str, scored: Sequence[ScoredAnswer], metrics: Sequence[Metric] = METRICS) -> Summary:
    """The summary of one condition, with confidence intervals over its prompts."""
    return Summary(name, len(scored), {metric.key: _estimate(scored, metric.key) for metric in metrics})


def by_prompt(scored: Sequence[ScoredAnswer], key: str) -> dict[str, list[float]]:
    """A metric's values by prompt, in order of appearance. Prompts without a value are left out."""
    groups: dict[str, list[float]] = {}
    for m in scored:
        value = m.values[key]
        if value is not None:
            groups.setdefault(m.answer.prompt, []).append(value)
    return groups


def _estimate(scored: Sequence[ScoredAnswer], key: str) -> Estimate | None:
    groups = by_prompt(scored, key)
    return bootstrap(list(groups.values())) if groups else None
