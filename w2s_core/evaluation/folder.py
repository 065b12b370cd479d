"""The output folder of an evaluation. Answers are appended one by one, so that a killed run loses none of them.

| file | content |
|---|---|
| `experiment.json` | everything that decides the answers |
| `prompts.jsonl` | the prompts, as `EvalPrompt` |
| `answers.jsonl` | the answers, as `AnswerRecord`, in the order in which they came |
| `left_out.jsonl` | answers that could not be had, as `LeftOut` |
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from w2s_core.errors import ConfigurationError
from w2s_core.evaluation.experiment import Experiment, Task, differences
from w2s_core.evaluation.records import AnswerRecord, EvalPrompt, LeftOut, as_lines, read_records
from w2s_core.files.durable import open_log, replace_file

_EXPERIMENT, _PROMPTS, _ANSWERS, _LEFT_OUT = "experiment.json", "prompts.jsonl", "answers.jsonl", "left_out.jsonl"
_LOCK = ".lock"
_TOLD = 5  # differences in a message


class AnswerFolder:
    """The answers that are on disk, and the place where new ones go. Made by `open_folder`."""

    def __init__(self, path: Path, answers: IO[bytes], left_out: IO[bytes]) -> None:
        self.path = path
        self._answers = answers
        self._left_out = left_out
        self._records = {record.key: record for record in _records(path)}

    def add(self, record: AnswerRecord | LeftOut) -> None:
        """Appends a record, which is safe from the end of this process when this returns."""
        file = self._answers if isinstance(record, AnswerRecord) else self._left_out
        file.write("".join(as_lines([record])).encode())
        file.flush()
        self._records[record.key] = record

    def missing(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks without a record."""
        return [task for task in tasks if task.key not in self._records]

    def answers(self, tasks: Sequence[Task]) -> list[AnswerRecord]:
        """The answers of the tasks that have one, in the tasks' order."""
        found = (self._records.get(task.key) for task in tasks)
        return [record for record in found if isinstance(record, AnswerRecord)]

    def left_out(self, tasks: Sequence[Task]) -> list[LeftOut]:
        """The tasks that were left out, in their order."""
        found = (self._records.get(task.key) for task in tasks)
        return [record for record in found if isinstance(record, LeftOut)]


@contextmanager
def open_folder(path: Path, experiment: Experiment) -> Iterator[AnswerFolder]:
    """Opens the folder for one process alone and writes the experiment into it; without any answer nothing stays.

    Raises ConfigurationError where another run writes into it, its answers belong to another experiment, or files of
    our names in it are somebody else's.
    """
    with ExitStack() as stack:
        try:
            if not path.exists():
                path.mkdir(parents=True)
                stack.callback(_remove_if_empty, path)
            _check_ours(path)
            stack.enter_context(FileLock(path / _LOCK, timeout=0))
            _check_same(path, experiment)
            stack.callback(_remove_without_answers, path)
            # First what `_check_ours` knows the folder by: a run may be killed between the two.
            replace_file(path / _EXPERIMENT, json.dumps(experiment.as_json(), ensure_ascii=False, indent=1) + "\n")
            replace_file(path / _PROMPTS, "".join(as_lines(experiment.prompts)))
            files = [stack.enter_context(open_log(path / name)) for name in (_ANSWERS, _LEFT_OUT)]
        except Timeout:
            raise ConfigurationError(f"{path}: another run is writing into it.") from None
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be written: {error.strerror or error}.") from None
        yield AnswerFolder(path, *files)


def _remove_without_answers(path: Path) -> None:
    if not _records(path):
        # Last what `_check_ours` knows the folder by.
        for name in (_PROMPTS, _ANSWERS, _LEFT_OUT, _LOCK, _EXPERIMENT):
            (path / name).unlink(missing_ok=True)


def _remove_if_empty(path: Path) -> None:
    with suppress(OSError):  # it has something in it
        path.rmdir()


def _check_ours(path: Path) -> None:
    """Raises ConfigurationError where the folder has a file that a run would overwrite and that is not a run's own."""
    names = [name for name in (_EXPERIMENT, _PROMPTS, _ANSWERS, _LEFT_OUT) if (path / name).exists()]
    if names and not _is_experiment(path / _EXPERIMENT):
        raise ConfigurationError(f"{path}: has a {names[0]} that is not of an evaluation. Choose another --out.")


def _is_experiment(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() >= {"baseline", "conditions", "judges"}


def _check_same(path: Path, experiment: Experiment) -> None:
    answered = {record.condition for record in _records(path)}
    if not answered:
        return
    saved = json.loads((path / _EXPERIMENT).read_text(encoding="utf-8"))
    different = list(differences(saved, experiment, answered))
    before = read_records(path / _PROMPTS, EvalPrompt)
    for number, (old, new) in enumerate(zip_longest(before, experiment.prompts[: len(before)]), start=1):
        if old != new:
            different.append(f"prompts (number {number} {'is another' if new else 'is missing'})")
            break
    if different:
        more = f" and {len(different) - _TOLD} more" if len(different) > _TOLD else ""
        raise ConfigurationError(
            f"{path}: has the answers of another experiment, which differs in {', '.join(different[:_TOLD])}{more}. "
            "Choose another --out."
        )


def _records(path: Path) -> list[AnswerRecord | LeftOut]:
    return [*read_records(path / _ANSWERS, AnswerRecord), *read_records(path / _LEFT_OUT, LeftOut)]
