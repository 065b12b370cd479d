"""Prompts and answers of an evaluation, as they lie on disk: one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from w2s_core.errors import ConfigurationError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EvalPrompt:
    """A prompt: what the user says in each of its turns (MT-Bench has two), or the text to complete if not `chat`.

    `group`: the part of a benchmark that it belongs to. `answer_prefix`: the end of a completion's prompt that judges
    read as the beginning of the answer. `history`: the messages of a chat in front of the first turn, with `role` and
    `content`.
    """

    id: str
    turns: tuple[str, ...]
    chat: bool = True
    group: str | None = None
    answer_prefix: str = ""
    history: tuple[Mapping[str, str], ...] = ()

    def messages(self, said: Sequence[str], system: str | None = None) -> list[Mapping[str, str]]:
        """The chat up to the turn that follows the answers `said`. `system` is for a chat that has no such message."""
        messages = list(self.history)
        if system is not None and not any(message["role"] == "system" for message in messages):
            messages.insert(0, {"role": "system", "content": system})
        for question, answer in zip(self.turns, said, strict=False):
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*messages, {"role": "user", "content": self.turns[len(said)]}]


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """A condition's answers to all turns of a prompt, and their cost in all turns together.

    `sampled_tokens`: tokens that the large model sampled, pruned ones included. `seconds`: latency. `logprob`: the
    large model's log-probability per token of the answers in nats, None where it is not told.
    """

    prompt: str
    condition: str
    seed: int
    texts: tuple[str, ...]
    finish_reasons: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    sampled_tokens: int
    seconds: float
    logprob: float | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the others of its evaluation: condition, prompt and seed."""
        return self.condition, self.prompt, self.seed


def read_records(path: Path, kind: type[T]) -> list[T]:
    """The records of a file, none if there is no file. A last line that a killed run left unfinished is left out.

    Raises ConfigurationError for a file that was written by something else.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")  # a character may be unfinished as well
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
            records.append(kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}))
        except (AttributeError, TypeError, ValueError):
            raise ConfigurationError(f"{path}, line {number}: is not a record of an evaluation.") from None
    return records


def as_lines(records: Iterable[Any]) -> Iterator[str]:
    """Each record as a line of JSON, with its line end."""
    for record in records:
        yield json.dumps(asdict(record), ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An answer that could not be had, because its prompt does not fit the model's context."""

    prompt: str
    condition: str
    seed: int
    reason: str

    @property
    def key(self) -> tuple[str, str, int]:
        """As of the answer that it stands for."""
        return self.condition, self.prompt, self.seed
