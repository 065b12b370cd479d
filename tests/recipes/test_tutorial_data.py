"""The tutorial's data: comparisons of sentences that the demo's splits keep apart, and openers of reviews."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from w2s_core.demo.data import splits
from w2s_core.evaluation.prompts import OPENERS, PREFIX
from w2s_core.pairs.preferences import read_preferences
from w2s_core.recipes.tutorial_data import CHECK, PROMPTS, TRAIN, main


def test_the_files_of_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tutorial_data", "--out", str(tmp_path), "--comparisons", "30", "--prompts", "2"])
    main()
    training, check = (read_preferences(tmp_path / name) for name in (TRAIN, CHECK))
    assert (len(training), len(check)) == (60, 400)
    ratings = {f" {sentence.text}": sentence.positive for split in splits() for sentence in split}
    assert all(ratings[answer.text] == answer.good for answer in [*training, *check])
    assert not {answer.text for answer in training} & {answer.text for answer in check}
    prompts = [json.loads(line) for line in (tmp_path / PROMPTS).read_text(encoding="utf-8").splitlines()]
    assert prompts == [{"text": PREFIX + opener, "answer_prefix": opener} for opener in OPENERS[:2]]


def test_a_file_of_your_own_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tutorial_data", "--out", str(tmp_path), "--comparisons", "3"])
    for _ in range(2):
        main()  # the same files may be written again
    (tmp_path / "experiment.yaml").write_text("mine: 1\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["tutorial_data", "--out", str(tmp_path), "--comparisons", "4"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"--out: {tmp_path}/train.jsonl exists, and is not what would be written." in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
