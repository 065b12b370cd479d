"""Reads prompts from files as they are: our JSONL, AlpacaEval's `alpaca_eval.json`, MT-Bench's `question.jsonl`.

| file | fields of a record |
|---|---|
| ours, a chat | `prompt`, or `messages` that end with the user's |
| ours, a completion | `text`, and optionally `answer_prefix`, the end of it that belongs to the answer |
| AlpacaEval | `instruction`, `dataset`; the file is one JSON list |
| MT-Bench | `question_id`, `category`, `turns` |

Any record may have an `id`; without one it is the record's number. Other fields are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from w2s_core.data_sets import DataError, read_records
from w2s_core.evaluation.records import EvalPrompt


def read_prompts(
    source: str | Path, limit: int | None = None, *, split: str = "train", chat: bool = True
) -> list[EvalPrompt]:
    """The prompts of a file or a data set (see `read_records`), the first `limit` of them.

    Without `chat`, a text in `prompt` is to be continued, as one in `text`. Raises DataError.
    """
    prompts: dict[str, EvalPrompt] = {}
    for count, record in enumerate(islice(read_records(source, split), limit), start=1):
        try:
            prompt = _prompt(record.fields, str(count), chat=chat)
        except DataError as error:
            raise DataError(f"{record.place}: {error}") from None
        if prompt.id in prompts:
            raise DataError(f"{record.place}: id: another prompt has `{prompt.id}` as well.")
        prompts[prompt.id] = prompt
    if not prompts:
        raise DataError(f"{source}: there are no prompts in it.")
    return list(prompts.values())


def _prompt(record: Mapping[str, Any], number: str, *, chat: bool) -> EvalPrompt:
    if "turns" in record:
        turns = record["turns"]
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
            raise DataError("turns: must be a list of texts.")
        return EvalPrompt(_id(record, "question_id", number), tuple(turns), group=_text(record, "category", None))
    name = _id(record, "id", number)
    group = _text(record, "dataset" if "instruction" in record else "group", None)
    if "text" in record:
        text, prefix = _text(record, "text"), _text(record, "answer_prefix", "")
        if not text.endswith(prefix):
            raise DataError("answer_prefix: `text` does not end with it.")
        return EvalPrompt(name, (text,), chat=False, group=group, answer_prefix=prefix)
    field = next((key for key in ("messages", "instruction") if key in record), "prompt")
    if isinstance(record.get(field), list):
        history, last = _messages(record[field], field)
        return EvalPrompt(name, (last,), group=group, history=history)
    return EvalPrompt(name, (_text(record, field),), chat=chat or field != "prompt", group=group)


def _messages(messages: list[Any], field: str) -> tuple[tuple[dict[str, str], ...], str]:
    """The messages in front of the last one, and the text of that, which the user says."""
    for i, message in enumerate(messages):
        texts = isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        if not texts:
            raise DataError(f"{field}.{i}: must have `role` and `content`, both texts.")
    if not messages or messages[-1]["role"] != "user":
        raise DataError(f"{field}: the last message must be the user's.")
    return tuple({"role": m["role"], "content": m["content"]} for m in messages[:-1]), messages[-1]["content"]


def _id(record: Mapping[str, Any], field: str, number: str) -> str:
    value = record.get(field, number)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{field}: must be a text or a number.")
    return str(value)


_REQUIRED = object()


def _text(record: Mapping[str, Any], field: str, default: Any = _REQUIRED) -> Any:
    """The field's text, or `default` where there is none."""
    value = record.get(field, default)
    if value is _REQUIRED:
        known = ", ".join(f"`{key}`" for key in record) or "nothing"
        raise DataError(
            f"{field}: is missing; a record has `prompt`, `messages`, `text`, `instruction` or `turns`, "
            f"this one has {known}."
        )
    if value is not default and not isinstance(value, str):
        raise DataError(f"{field}: must be a text.")
    return value
