"""Runs an evaluation: asks for the answers, sums them up by condition, and has them judged."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import httpx

from w2s_core.evaluation.client import AnswerClient, CompletionPrompt
from w2s_core.evaluation.experiment import Experiment
from w2s_core.evaluation.folder import AnswerFolder, open_folder
from w2s_core.evaluation.generation import generate
from w2s_core.evaluation.metrics import RUN_METRICS
from w2s_core.evaluation.records import AnswerRecord, LeftOut
from w2s_core.evaluation.report import summary_rows, table
from w2s_core.evaluation.scoring import ScoredAnswer, Summary, counts, summarize

Server: TypeAlias = AbstractAsyncContextManager[httpx.AsyncClient]
"""A client of the server while it is entered. A server in this process runs only then."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What judges read: the experiment, its answers in the order of its tasks and what they cost by condition.

    `folder` is where they may keep files of their own.
    """

    experiment: Experiment
    answers: Sequence[AnswerRecord]
    summaries: Sequence[Summary]
    folder: Path


@dataclass(frozen=True, slots=True)
class Judgements:
    """What judges found: `figures` for `results.json`, and `text` for people."""

    figures: Mapping[str, Any]
    text: str


Judging: TypeAlias = Callable[[Evaluation], Awaitable[Judgements]]
"""Judges all answers, once, after the server that gave them is left."""


@dataclass(frozen=True, slots=True)
class RunResults:
    """The summary of every condition, which answers were left out, and what the judges found, if there are any."""

    experiment: Experiment
    summaries: Sequence[Summary]
    left_out: Sequence[LeftOut] = field(default_factory=list)
    judgements: Judgements | None = None

    def as_json(self) -> dict[str, Any]:
        """For `json.dump`. Units: nats, seconds, tokens."""
        return {
            "experiment": self.experiment.as_json() | {"prompts": len(self.experiment.prompts)},
            "summaries": [asdict(summary) for summary in self.summaries],
            "left_out": [asdict(record) for record in self.left_out],
            "judgements": dict(self.judgements.figures) if self.judgements else None,
        }

    def as_text(self) -> str:
        """The table, what was left out, and the judges' text."""
        rows = summary_rows(self.summaries, RUN_METRICS)
        answers = ["answers", *(str(summary.answers) for summary in self.summaries)]
        parts = [
            f"{len(self.experiment.prompts)} prompts. Mean [95 % interval, bootstrap over prompts]",
            table([[row[0], count, *row[1:]] for row, count in zip(rows, answers, strict=True)]),
        ]
        if self.left_out:
            prompts = len({record.prompt for record in self.left_out})
            parts.append(
                f"{len(self.left_out)} answers to {prompts} prompts are left out: they do not fit the context."
            )
        return "\n\n".join([*parts, *([self.judgements.text] if self.judgements and self.judgements.text else [])])


async def run(
    experiment: Experiment, path: Path, server: Server, concurrency: int, judging: Judging | None = None
) -> RunResults:
    """Runs the experiment in the folder `path`, goes on where an earlier run stopped, and writes `results.json`.

    Raises ConfigurationError for a folder or a request that cannot be used, and W2SError for a server that fails.
    """
    with open_folder(path, experiment) as folder:
        answers = await answered(experiment, folder, server, concurrency)
        summaries = summarize_run(experiment, answers)
        judgements = await judging(Evaluation(experiment, answers, summaries, path)) if judging is not None else None
        results = RunResults(experiment, summaries, folder.left_out(experiment.tasks), judgements)
        content = json.dumps(results.as_json(), ensure_ascii=False, indent=1)
        (path / "results.json").write_text(content + "\n", encoding="utf-8")
    return results


async def answered(
    experiment: Experiment,
    folder: AnswerFolder,
    server: Server,
    concurrency: int,
    completion_prompts: Mapping[str, CompletionPrompt] | None = None,
) -> list[AnswerRecord]:
    """All answers of the experiment, without those that were left out. The server starts only if some are missing."""
    tasks = experiment.tasks
    if folder.missing(tasks):
        async with server as http:
            client = AnswerClient(http, experiment.system, completion_prompts)
            await client.check(experiment)
            await generate(tasks, folder, client.answer, concurrency)
    return folder.answers(tasks)


def summarize_run(experiment: Experiment, answers: Sequence[AnswerRecord]) -> list[Summary]:
    """The cost and the form of each condition's answers, in the order of the conditions."""
    scored: dict[str, list[ScoredAnswer]] = {condition.name: [] for condition in experiment.conditions}
    for answer in answers:
        scored[answer.condition].append(ScoredAnswer(answer, counts(answer)))
    return [summarize(name, rows, RUN_METRICS) for name, rows in scored.items()]
