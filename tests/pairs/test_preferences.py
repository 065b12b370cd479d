"""Preference data in TRL's formats, and what is said of data that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from w2s_core.data_sets import DataError
from w2s_core.pairs.preferences import Answer, read_preferences
from w2s_core.types import ChatPrompt, TextPrompt

ASKED = [{"role": "user", "content": "Sky?"}]
SKY, CHAT = TextPrompt("The sky is"), ChatPrompt(tuple(ASKED))


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def write(folder: Path, *records: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("record", "prompt", "texts"),
    [
        ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, SKY, (" blue.", " green.")),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, SKY, (" blue.", " green.")),
        ({"prompt": ASKED, "chosen": said("Blue."), "rejected": said("No.")}, CHAT, ("Blue.", "No.")),
        ({"chosen": ASKED + said("Blue."), "rejected": ASKED + said("No.")}, CHAT, ("Blue.", "No.")),
        ({"prompt": ASKED, "chosen": "Blue.", "rejected": ""}, CHAT, ("Blue.", "")),
    ],
)
def test_comparisons(tmp_path: Path, record: Any, prompt: object, texts: tuple[str, str]) -> None:
    found = read_preferences(write(tmp_path, record | {"score": 3}))
    good, bad = texts
    assert found == [Answer(prompt, good, good=True, partner=1), Answer(prompt, bad, good=False, partner=1)]  # type: ignore[arg-type]


def test_answers_one_by_one(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "Sky?", "completion": "Blue.", "label": True}, {"text": "Green.", "label": 0})
    assert read_preferences(path) == [
        Answer(TextPrompt("Sky?"), "Blue.", good=True, partner=None),
        Answer(TextPrompt(""), "Green.", good=False, partner=None),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["", "  "], "data.jsonl: there are no answers in it."),
        (['{"text": "a", "label": true}'], "data.jsonl: all answers are good."),
        (["not json"], "data.jsonl, line 1: is not JSON"),
        (["", "3"], "data.jsonl, line 2: is not a JSON object."),
        (["[1]"], "data.jsonl, record 1: is not a JSON object."),
        (['{"chosen": "a"}'], "line 1: rejected: is missing; there is `chosen`."),
        (['{"chosen": "a", "rejected": 3}'], "rejected: is neither a text nor a list of messages."),
        (['{"chosen": "a", "rejected": []}'], "chosen, rejected: one is a text and the other a list of messages."),
        (['{"prompt": "x", "chosen": [], "rejected": []}'], "chosen: must be one message of the assistant"),
        (['{"text": "a"}'], "label: must be true (a good answer) or false"),
        (['{"text": "a", "label": 2}'], "label: must be true"),
        (['{"messages": []}'], "messages: must be a list of at least two messages"),
        (['{"completion": "a", "label": true}'], "prompt: is missing; there is `completion`, `label`."),
        (['{"answer": "a"}'], "text: is missing; there is `answer`."),
    ],
)
def test_data_that_cannot_be_used_is_told_by_line_and_field(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_preferences(path)
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_preferences(tmp_path / "missing.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not in UTF-8"):
        read_preferences(tmp_path / "binary")


def test_a_line_separator_within_a_text_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a\u2028b", "label": true}\r\n{"text": "c", "label": false}\n', encoding="utf-8")
    assert [answer.text for answer in read_preferences(path)] == ["a\u2028b", "c"]
