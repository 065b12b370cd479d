"""Reads preference data in TRL's formats: which answer to a prompt is better (https://huggingface.co/docs/trl/dataset_formats).

| format | fields of a line |
|---|---|
| preference | `prompt`, `chosen`, `rejected`; without `prompt` it is what both begin with |
| unpaired preference | `prompt`, `completion`, `label` (true = good), or `text` instead of both |

Prompts and answers are texts or, in the conversational variants, lists of messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_core.json_lines import DataError, json_lines
from w2s_core.types import ChatPrompt, Prompt, TextPrompt


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a prompt, and whether people liked it. `partner` numbers the comparison that it is part of."""

    prompt: Prompt
    text: str
    good: bool
    partner: int | None


def read_preferences(path: Path) -> list[Answer]:
    """The answers of a JSONL file, the two of a comparison one after the other, the chosen one first.

    Raises DataError.
    """
    answers: list[Answer] = []
    for number, record in json_lines(path):
        place = f"{path}, line {number}"
        try:
            answers += _answers(record, number)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
    if len({answer.good for answer in answers}) < 2:
        what = "good" if answers and answers[0].good else "bad"
        raise DataError(f"{path}: " + (f"all answers are {what}." if answers else "there are no answers in it."))
    return answers


def _answers(record: Mapping[str, Any], number: int) -> Iterator[Answer]:
    if "chosen" in record or "rejected" in record:
        chosen, rejected = _field(record, "chosen"), _field(record, "rejected")
        if type(chosen) is not type(rejected):
            raise DataError("chosen, rejected: one is a text and the other a list of messages.")
        common = 0 if "prompt" in record else _common_length(chosen, rejected)
        prompt = _field(record, "prompt") if "prompt" in record else chosen[:common]
        chosen, rejected = chosen[common:], rejected[common:]
        yield Answer(_prompt(prompt), _text(chosen, "chosen"), good=True, partner=number)
        yield Answer(_prompt(prompt), _text(rejected, "rejected"), good=False, partner=number)
        return
    name = "completion" if "completion" in record else "text"
    completion, label = _field(record, name), record.get("label")
    if not isinstance(label, bool | int) or label not in (0, 1):
        raise DataError("label: must be true (a good answer) or false; or give `chosen` and `rejected`.")
    prompt = _field(record, "prompt") if "prompt" in record else ""
    yield Answer(_prompt(prompt), _text(completion, name), good=bool(label), partner=None)


def _common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The length of what both begin with, without a blank at its end, which belongs to the answers, as in TRL."""
    pairs = enumerate(zip(one, other, strict=False))
    length = next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
    return length - 1 if length and one[length - 1] == " " else length


def _field(record: Mapping[str, Any], name: str) -> str | list[Mapping[str, Any]]:
    value = record.get(name)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in value):
        return value
    known = ", ".join(f"`{key}`" for key in record) or "nothing"
    found = f"is missing; there is {known}" if name not in record else "is neither a text nor a list of messages"
    raise DataError(f"{name}: {found}.")


def _prompt(value: str | Sequence[Mapping[str, Any]]) -> Prompt:
    return TextPrompt(value) if isinstance(value, str) else ChatPrompt(tuple(value))


def _text(value: str | Sequence[Mapping[str, Any]], name: str) -> str:
    if isinstance(value, str):
        return value
    if len(value) != 1 or value[0].get("role") != "assistant":
        raise DataError(f"{name}: must be one message of the assistant behind the prompt.")
    content: str = value[0]["content"]
    return content
