"""Evaluations with given answers, for tests of judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from w2s_core.evaluation.experiment import Condition, Experiment
from w2s_core.evaluation.records import AnswerRecord, EvalPrompt
from w2s_core.evaluation.run import Evaluation, summarize_run
from w2s_core.judges.judge import Case


def record(prompt: str, condition: str, *texts: str, seed: int = 0, finish_reason: str = "stop") -> AnswerRecord:
    """An answer that sampled ten tokens for each letter of its condition's name."""
    return AnswerRecord(
        prompt=prompt,
        condition=condition,
        seed=seed,
        texts=texts,
        finish_reasons=(finish_reason,) * len(texts),
        prompt_tokens=3,
        completion_tokens=5,
        sampled_tokens=10 * len(condition),
        seconds=1.0,
    )


def case(answer: str, rival: str, prompt: EvalPrompt | None = None) -> Case:
    """An answer of one turn beside the baseline's."""
    prompt = prompt or EvalPrompt("p", ("Why?",))
    return Case(prompt, record(prompt.id, "ours", answer), None, record(prompt.id, "base", rival))


def evaluation(
    folder: Path,
    answers: Mapping[str, Mapping[tuple[str, int], str]],
    prompts: Sequence[EvalPrompt] | None = None,
    **more: str,
) -> Evaluation:
    """Answers by condition, prompt and seed; the first condition is the baseline."""
    ids = list(dict.fromkeys(prompt for texts in answers.values() for prompt, _ in texts))
    prompts = prompts or [EvalPrompt(name, (f"Question {name}?",)) for name in ids]
    seeds = 1 + max(seed for texts in answers.values() for _, seed in texts)
    conditions = [Condition(name, "m", seeds=seeds) for name in answers]
    experiment = Experiment(prompts, conditions, conditions[0].name, **more)
    records = [
        record(prompt, name, text, seed=seed)
        for name, texts in answers.items()
        for (prompt, seed), text in texts.items()
    ]
    return Evaluation(experiment, records, summarize_run(experiment, records), folder)
