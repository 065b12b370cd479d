"""Reads preference and training data in TRL's formats (https://huggingface.co/docs/trl/dataset_formats).

| format | fields of a record |
|---|---|
| preference | `prompt`, `chosen`, `rejected`; without `prompt` it is what both begin with |
| unpaired preference | `prompt`, `completion`, `label` (true = good) |
| prompt-completion | `prompt`, `completion` |
| language modelling | `text`, or `messages`, whose last one is the answer; with a `label` it is the second |

Prompts and answers are texts or, in the conversational variants, lists of messages. The last two formats have no
bad answers and serve for training only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2s_core.data_sets import DataError, Record, read_records
from w2s_core.types import ChatPrompt, Prompt, TextPrompt


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a prompt, and whether people liked it. `partner` numbers the comparison that it is part of.

    `labelled`: whether the data says that it is good or bad; else it counts as good. `place` is for messages.
    """

    prompt: Prompt
    text: str
    good: bool
    partner: int | None
    labelled: bool = True
    place: str = field(default="", compare=False)


def read_preferences(source: str | Path, split: str = "train") -> list[Answer]:
    """Good and bad answers, the two of a comparison one after the other, the chosen one first.

    `source` and `split`: see `read_records`. Raises DataError.
    """
    answers = read_answers(source, split)
    for answer in answers:
        if not answer.labelled:
            raise DataError(
                f"{answer.place}: label: must be true (a good answer) or false; or give `chosen` and `rejected`."
            )
    return answers


def read_answers(source: str | Path, split: str = "train") -> list[Answer]:
    """The answers of a data set: good and bad ones, or, if none is labelled, good ones only. Raises DataError."""
    answers: list[Answer] = []
    for record in read_records(source, split):
        try:
            answers += _answers(record)
        except DataError as error:
            raise DataError(f"{record.place}: {error}") from None
    if not answers:
        raise DataError(f"{source}: there are no answers in it.")
    labelled = answers[0].labelled
    for answer in answers:
        if answer.labelled != labelled:
            raise DataError(f"{answer.place}: label: must be in every record or in none.")
    if labelled and len({answer.good for answer in answers}) < 2:
        raise DataError(f"{source}: all answers are {'good' if answers[0].good else 'bad'}.")
    return answers


def _answers(record: Record) -> Iterator[Answer]:
    fields, number, place = record.fields, record.number, record.place
    if "chosen" in fields or "rejected" in fields:
        chosen, rejected = _field(fields, "chosen"), _field(fields, "rejected")
        if type(chosen) is not type(rejected):
            raise DataError("chosen, rejected: one is a text and the other a list of messages.")
        common = 0 if "prompt" in fields else _common_length(chosen, rejected)
        prompt = _prompt(_field(fields, "prompt") if "prompt" in fields else chosen[:common])
        for name, value in (("chosen", chosen[common:]), ("rejected", rejected[common:])):
            yield Answer(prompt, _text(value, name), good=name == "chosen", partner=number, place=place)
        return
    prompt, text = _prompt_and_answer(fields)
    label = fields.get("label", True)
    if not isinstance(label, bool | int) or label not in (0, 1):
        raise DataError("label: must be true (a good answer) or false; or give `chosen` and `rejected`.")
    yield Answer(prompt, text, good=bool(label), partner=None, labelled="label" in fields, place=place)


def _prompt_and_answer(fields: Mapping[str, Any]) -> tuple[Prompt, str]:
    if "completion" in fields or "prompt" in fields:
        return _prompt(_field(fields, "prompt")), _text(_field(fields, "completion"), "completion")
    if "messages" in fields:
        messages = _field(fields, "messages")
        if not isinstance(messages, list) or len(messages) < 2:
            raise DataError("messages: must be a list of at least two messages, the last of which is the answer.")
        return _prompt(messages[:-1]), _text(messages[-1:], "messages")
    return TextPrompt(""), _text(_field(fields, "text"), "text")


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
