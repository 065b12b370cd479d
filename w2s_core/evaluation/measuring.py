"""From answers to figures: each answer's values, each condition's means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from w2s_core.evaluation.experiment import Answer, bounded
from w2s_core.evaluation.instrument import Instrument
from w2s_core.evaluation.metrics import METRICS, Estimate, bootstrap, distinct_2, words
from w2s_core.evaluation.settings import WEAK

Judge = Callable[[Sequence[str]], list[float]]
Values = Mapping[str, float | None]
_CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class Measured:
    """An answer and its value of every metric, by key; None where it has none (no word pair, no token)."""

    answer: Answer
    values: Values


@dataclass(frozen=True, slots=True)
class Summary:
    """One condition's means by metric. `corpus_distinct2` is over all its answers together."""

    condition: str
    answers: int
    estimates: Mapping[str, Estimate | None]
    corpus_distinct2: float | None


async def measure(
    answers: Sequence[Answer], instrument: Instrument, judges: Mapping[str, Judge], progress: Callable[[], object]
) -> list[Measured]:
    """Every answer's values, in order. `judges` map the keys "judge" and "vader" to what reads texts."""

    async def nats(answer: Answer) -> dict[str, float | None]:
        implicit = await instrument.implicit_score(answer.opener, answer.hypothesis)
        logprob = await _logprob(answer, instrument)
        progress()
        return {"implicit": implicit, "logprob": logprob}

    texts = [answer.judged_text for answer in answers]
    opinions = {key: judge(texts) for key, judge in judges.items()}
    scores = await bounded(nats, answers, _CONCURRENCY)
    return [
        Measured(answer, {key: opinion[i] for key, opinion in opinions.items()} | scores[i] | _counts(answer))
        for i, answer in enumerate(answers)
    ]


async def _logprob(answer: Answer, instrument: Instrument) -> float | None:
    """log p_large per token of the answer, without the token that ended it, so that all answers are comparable."""
    hypothesis = answer.hypothesis
    if answer.condition.model == WEAK:
        return await instrument.log_likelihood(answer.opener, hypothesis.text)
    count = len(hypothesis.tokens)
    return sum(hypothesis.logprobs[:count]) / count if count else None


def _counts(answer: Answer) -> dict[str, float | None]:
    text = answer.hypothesis.text
    return {
        "distinct2": distinct_2([text]),
        "words": float(len(words(text))),
        "sampled": float(answer.sampled_tokens),
        "seconds": answer.seconds,
    }


def summarize(name: str, measured: Sequence[Measured]) -> Summary:
    """Means over one condition's answers, with intervals over its prompts."""
    return Summary(
        name,
        len(measured),
        {metric.key: _estimate(measured, metric.key) for metric in METRICS},
        distinct_2([m.answer.hypothesis.text for m in measured]),
    )


def by_prompt(measured: Sequence[Measured], key: str) -> list[list[float]]:
    """A metric's values, one group per opener in order of appearance; openers without any value are left out."""
    groups: dict[str, list[float]] = {}
    for m in measured:
        value = m.values[key]
        if value is not None:
            groups.setdefault(m.answer.opener, []).append(value)
    return list(groups.values())


def _estimate(measured: Sequence[Measured], key: str) -> Estimate | None:
    groups = by_prompt(measured, key)
    return bootstrap(groups) if groups else None
