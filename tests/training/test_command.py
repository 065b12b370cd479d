"""The command `w2s pair train`, from data to a pair that `w2s pair check` reads from the written configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner

from server.cli import main
from tests.training.conftest import comparisons
from w2s_core.training import run as training_run
from w2s_core.training.phases import PhaseRunner


def test_train_and_check(base: str, tmp_path: Path) -> None:
    data, out = tmp_path / "data.parquet", tmp_path / "my pair"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(comparisons()), data)
    runner = CliRunner()
    options = ["--method", "dpo", "--epochs", "2", "--learning-rate", "0.01", "--batch-size", "4", "--held-out", "0.33"]
    made = runner.invoke(main, ["pair", "train", "--base", base, "--data", str(data), "--out", str(out), *options])
    assert made.exit_code == 0, made.output
    assert made.stdout.startswith("16 answers\nthe chosen answer scores higher   1.000")
    assert f"wrote {out}; serve it with: w2s serve --config '{out}/w2s.yaml'\n" in made.stderr
    assert f"`w2s serve --config '{out}/w2s.yaml'`" in (out / "README.md").read_text(encoding="utf-8")
    pair = ["--pair", "my-pair", "--config", str(out / "w2s.yaml")]
    checked = runner.invoke(main, ["pair", "check", *pair, "--data", str(data), "--json"])
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["verdict"] == "steers"
    again = runner.invoke(main, ["pair", "train", "--base", base, "--data", str(data), "--out", str(out), *options])
    assert again.exit_code == 2
    assert "exists and is not empty" in again.stderr


def test_its_libraries_say_nothing_on_import(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    command = [sys.executable, "-c", "from server.cli import main; main()", "pair", "train", "--method", "sft"]
    command += ["--base", "/no/such/base", "--data", "data.jsonl", "--out", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stderr == "w2s: --base: no such folder: /no/such/base.\n"


def test_ctrl_c_says_how_to_go_on(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "pair"
    data.write_text("".join(f"{json.dumps(record)}\n" for record in comparisons()), encoding="utf-8")

    def stopped(runner: PhaseRunner, *_: object) -> None:
        for name in kept:
            (runner._work / name).mkdir()
            (runner._work / name / "file").touch()
        raise KeyboardInterrupt

    kept: list[str] = []
    monkeypatch.setattr(training_run, "_train", stopped)
    options = ["--base", base, "--data", str(data), "--out", str(out), "--method", "sft"]
    found = CliRunner().invoke(main, ["pair", "train", *options])
    assert found.exit_code == 130
    assert found.stderr.endswith("\nStopped.\n"), "there is nothing to go on from"
    assert not out.exists()
    kept.append("adapt")
    found = CliRunner().invoke(main, ["pair", "train", *options])
    assert found.exit_code == 130
    assert found.stderr.endswith(f"Stopped. What is done is in {out}; the same command goes on from there.\n")
    assert (out / ".training").exists()
