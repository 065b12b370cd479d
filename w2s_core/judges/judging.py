"""Judges every answer that has no judgement yet, concurrently, and keeps each judgement in the output folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

from tqdm import tqdm

from w2s_core.aio import gather_all
from w2s_core.errors import ConfigurationError, W2SError
from w2s_core.evaluation.records import AnswerRecord, as_lines, read_records
from w2s_core.evaluation.run import Evaluation
from w2s_core.files.durable import open_log
from w2s_core.judges.judge import Case, Judge, JudgeFunction, Opinion

FILE = "judgements.jsonl"


@dataclass(frozen=True, slots=True)
class Judgement:
    """An opinion as it lies on disk; `value`, `reason` and `said` as in `Opinion`.

    `basis` is a digest of all that the opinion depends on: the judge's options, the prompt, the answer and, for a judge
    that compares, the baseline's answer.
    """

    judge: str
    condition: str
    prompt: str
    seed: int
    value: float | None
    reason: str
    said: tuple[str, ...]
    basis: str


class JudgementLog:
    """The judgements that are on disk, and the place where new ones go. Made by `open_judgements`."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._file = file
        self._found = {record.basis: record for record in read_records(path, Judgement)}

    def add(self, record: Judgement) -> None:
        """Appends a judgement, which is safe from the end of this process when this returns."""
        self._file.write("".join(as_lines([record])).encode())
        self._file.flush()
        self._found[record.basis] = record

    def get(self, basis: str) -> Judgement | None:
        """The judgement on this basis."""
        return self._found.get(basis)


@contextmanager
def open_judgements(folder: Path) -> Iterator[JudgementLog]:
    """Opens the log in the folder, which the evaluation has for itself."""
    with open_log(folder / FILE) as file:
        yield JudgementLog(folder / FILE, file)


def cases(evaluation: Evaluation, pairwise: bool) -> list[Case]:
    """What a judge judges: every answer, or every answer of another condition than the baseline that has a rival."""
    experiment = evaluation.experiment
    prompts = {prompt.id: prompt for prompt in experiment.prompts}
    baseline = {(a.prompt, a.seed): a for a in evaluation.answers if a.condition == experiment.baseline}
    if not pairwise:
        return [Case(prompts[a.prompt], a, experiment.system) for a in evaluation.answers]
    return [
        Case(prompts[a.prompt], a, experiment.system, baseline[a.prompt, a.seed])
        for a in evaluation.answers
        if a.condition != experiment.baseline and (a.prompt, a.seed) in baseline
    ]


async def judge_all(judge: Judge, todo: Sequence[Case], log: JudgementLog, concurrency: int) -> list[Judgement]:
    """The judgements of all cases, in their order, `concurrency` at a time. The judge starts only if some are missing.

    The first failure cancels the others; what was judged before is kept, and its message says so.
    """
    bases = [_basis(judge, case) for case in todo]
    missing = {basis: case for basis, case in zip(bases, todo, strict=True) if log.get(basis) is None}
    queue = iter(missing.items())
    with tqdm(total=len(todo), initial=len(todo) - len(missing), desc=f"judge {judge.name}", unit="answer") as bar:

        async def work(function: JudgeFunction) -> None:
            for basis, case in queue:
                log.add(_judgement(judge.name, case.answer, await function(case), basis))
                bar.update()

        try:
            if missing:
                async with judge.start as function:
                    await gather_all([work(function) for _ in range(min(concurrency, len(missing)))])
        except W2SError as error:
            progress = f"{bar.n} of {len(todo)} judgements are in {log.path}; the same command goes on from there."
            kind = ConfigurationError if isinstance(error, ConfigurationError) else W2SError
            raise kind(f"{error} {progress}") from None
    return [record for basis in bases if (record := log.get(basis)) is not None]


def _judgement(name: str, answer: AnswerRecord, opinion: Opinion, basis: str) -> Judgement:
    return Judgement(
        name, answer.condition, answer.prompt, answer.seed, opinion.value, opinion.reason, opinion.said, basis
    )


def _basis(judge: Judge, case: Case) -> str:
    def judged(answer: AnswerRecord) -> list[object]:
        return [answer.condition, answer.seed, answer.texts, answer.finish_reasons]

    rival = [] if case.baseline is None else judged(case.baseline)
    content = [judge.name, judge.options, asdict(case.prompt), case.system, judged(case.answer), rival]
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
