"""Records from JSONL and Parquet files, and from a data set that the `datasets` library loads."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from w2s_core.data_sets import DataError, has_splits, read_records
from w2s_core.pairs.preferences import Answer, read_answers, read_preferences
from w2s_core.types import ChatPrompt, TextPrompt

ASK = {"role": "user", "content": "Sky?"}
ROWS: list[dict[str, Any]] = [
    {
        "prompt": [ASK],
        "chosen": [{"role": "assistant", "content": "Blue."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    },
    {
        "prompt": [ASK],
        "chosen": [{"role": "assistant", "content": "Grey."}],
        "rejected": [{"role": "assistant", "content": "Hm."}],
    },
]


def write_jsonl(folder: Path) -> Path:
    path = folder / "train.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS), encoding="utf-8")
    return path


def write_parquet(folder: Path, rows: Any = ROWS) -> Path:
    path = folder / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_data_set(folder: Path) -> Path:
    """A folder as a hub repository is one."""
    (folder / "repository").mkdir()
    write_parquet(folder / "repository")
    return folder / "repository"


@pytest.mark.parametrize("write", [write_jsonl, write_parquet, write_data_set])
def test_the_same_records_in_every_form(tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = write(tmp_path)
    prompt = ChatPrompt((ASK,))
    assert read_preferences(source) == [
        Answer(prompt, text, good=good, partner=number)
        for number, texts in ((1, ("Blue.", "No.")), (2, ("Grey.", "Hm.")))
        for text, good in zip(texts, (True, False), strict=True)
    ]
    noun = "line" if source.suffix == ".jsonl" else "row"
    assert [record.place for record in read_records(source)] == [f"{source}, {noun} 1", f"{source}, {noun} 2"]


def test_a_column_that_is_empty_in_a_row_is_missing_in_its_record(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, [{"text": "a", "label": True}, {"text": "b", "label": None}])
    with pytest.raises(DataError, match=r"train.parquet, row 2: label: must be in every record or in none"):
        read_answers(path)


@pytest.mark.parametrize(
    ("record", "prompt", "text"),
    [
        ({"prompt": "Sky?", "completion": "Blue."}, TextPrompt("Sky?"), "Blue."),
        ({"text": "Blue."}, TextPrompt(""), "Blue."),
        ({"messages": [ASK, {"role": "assistant", "content": "Blue."}]}, ChatPrompt((ASK,)), "Blue."),
    ],
)
def test_answers_without_labels_are_good_ones_for_training_only(
    tmp_path: Path, record: Any, prompt: Any, text: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record), encoding="utf-8")
    assert read_answers(path) == [Answer(prompt, text, good=True, partner=None, labelled=False)]
    with pytest.raises(DataError, match="line 1: label: must be true"):
        read_preferences(path)


def test_data_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.parquet").write_text("no table", encoding="utf-8")
    with pytest.raises(DataError, match=r"bad.parquet: cannot be read"):
        list(read_records(tmp_path / "bad.parquet"))
    with pytest.raises(DataError, match=r"missing/folder.jsonl: cannot be read: No such file"):
        list(read_records("missing/folder.jsonl"))
    data_set = write_data_set(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"repository: cannot be loaded as a data set: .*validation"):
        list(read_records(data_set, "validation"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in (tmp_path / "bad.parquet", data_set):
        with pytest.raises(DataError, match=r"needs the extra `train`"):
            list(read_records(source))


def test_a_mark_in_front_of_utf_8_is_no_part_of_it_and_other_encodings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"text": "a"}\n')
    assert [dict(record.fields) for record in read_records(path)] == [{"text": "a"}]
    path.write_bytes('{"text": "a"}'.encode("utf-16"))
    with pytest.raises(DataError, match=r"is not in UTF-8 \(at byte 0\); save it as UTF-8"):
        list(read_records(path))


def test_a_name_in_a_folder_that_is_here_is_no_data_set_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reviews").mkdir()
    monkeypatch.chdir(tmp_path)
    assert has_splits("org/reviews")
    assert not has_splits("reviews/gone")
    with pytest.raises(DataError, match=r"reviews/gone: cannot be read: No such file or directory\.$"):
        list(read_records("reviews/gone"))
