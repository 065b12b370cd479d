"""Prompt files of three formats, and one line for what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from w2s_core.data_sets import DataError
from w2s_core.evaluation.prompt_files import read_prompts
from w2s_core.evaluation.records import EvalPrompt, as_lines, read_records


def write(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    return path


def test_our_own_lines(tmp_path: Path) -> None:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    path = write(
        tmp_path / "p.jsonl",
        {"prompt": "Hello", "reference": "ignored"},
        {"id": "why", "messages": said, "group": "questions"},
        {"id": 7, "text": "Review: The film", "answer_prefix": "The film"},
        {"prompt": said},
    )
    assert read_prompts(path) == [
        EvalPrompt("1", ("Hello",)),
        EvalPrompt("why", ("Why?",), group="questions", history=(said[0],)),
        EvalPrompt("7", ("Review: The film",), chat=False, answer_prefix="The film"),
        EvalPrompt("4", ("Why?",), history=(said[0],)),
    ]
    assert len(read_prompts(path, limit=2)) == 2


def test_alpaca_evals_file(tmp_path: Path) -> None:
    path = tmp_path / "alpaca_eval.json"
    records = [
        {"instruction": f"Do {i}", "output": "Done", "generator": "davinci", "dataset": "koala"} for i in range(2)
    ]
    path.write_text(json.dumps(records, indent=4), encoding="utf-8")
    assert read_prompts(path) == [EvalPrompt("1", ("Do 0",), group="koala"), EvalPrompt("2", ("Do 1",), group="koala")]


def test_mt_benchs_file(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]})
    assert read_prompts(path) == [EvalPrompt("81", ("Write.", "Rewrite."), group="writing")]


def test_prompts_survive_the_disk(tmp_path: Path) -> None:
    prompts = [
        EvalPrompt("a", ("é\u2028", "b"), history=({"role": "system", "content": "s"},)),
        EvalPrompt("b", ("x",)),
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(as_lines(prompts)), encoding="utf-8")
    assert read_records(path, EvalPrompt) == prompts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "p: there are no prompts in it."),
        ('{"prompt": "a"}\nno', "p, line 2: is not JSON: Expecting value: line 1 column 1 (char 0)."),
        ("[1]", "p, record 1: is not a JSON object."),
        ("[", "p: is not JSON: Expecting value: line 1 column 2 (char 1)."),
        ('{"prompt": 3}', "p, line 1: prompt: must be a text."),
        (
            '{"question": "a"}',
            "p, line 1: prompt: is missing; a record has `prompt`, `messages`, `text`, `instruction` or `turns`, "
            "this one has `question`.",
        ),
        ('{"turns": []}', "p, line 1: turns: must be a list of texts."),
        ('{"id": true, "prompt": "a"}', "p, line 1: id: must be a text or a number."),
        ('{"prompt": "a"}\n\n{"id": "1", "prompt": "b"}', "p, line 3: id: another prompt has `1` as well."),
        ('{"text": "a", "answer_prefix": "b"}', "p, line 1: answer_prefix: `text` does not end with it."),
        ('{"messages": [{"role": "user"}]}', "p, line 1: messages.0: must have `role` and `content`, both texts."),
        (
            '{"messages": [{"role": "assistant", "content": "a"}]}',
            "p, line 1: messages: the last message must be the user's.",
        ),
    ],
)
def test_one_line_says_what_is_wrong(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p").write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_prompts(Path("p"))
    assert str(caught.value) == message
