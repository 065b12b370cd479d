"""`w2s eval run` with files, flags and folders that cannot be used: one line and exit code 2."""

from __future__ import annotations

import json
import math
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.evaluation.eval_command import run
from tests.tiny import save_tiny


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ({}, [], "prompts: name a file, by --prompts or in the experiment's file."),
        ({"prompts": "prompts.jsonl"}, [], "conditions: name a served model by --model, or conditions in the"),
        ({"promts": "prompts.jsonl"}, [], "experiment.yaml: promts: unknown key"),
        (
            {"conditions": {"x": {"modell": "m"}}},
            [],
            "conditions.x.model: Field required; conditions.x.modell: unknown",
        ),
        ({"sampling": {"seed": 3}}, [], "sampling: `seed` is no sampling parameter"),
        ({"seeds": 0}, [], "seeds: Input should be greater than or equal to 1"),
        (
            {"prompts": "nowhere.jsonl", "conditions": {"x": {"model": "m"}}},
            [],
            "nowhere.jsonl: cannot be read: No such",
        ),
        (
            {"prompts": "prompts.jsonl", "conditions": {"x": {"model": "m"}}, "baseline": "y"},
            [],
            "baseline: no condition is named `y` (there are: x).",
        ),
        ({}, ["--guidance", "beam_width"], "--guidance: `beam_width` is not KEY=VALUE or KEY=VALUE,VALUE."),
        ({}, ["--guidance", "pairs=1", "--guidance", "pairs.a=1"], "guidance.pairs.a: `pairs` has a value already"),
        ({}, ["--url", "http://127.0.0.1:9", "--config", "x.yaml"], "--config: is for a server in this process"),
        ({}, ["--api-key-env", "KEY"], "--api-key-env: is for a running server, which --url names."),
        (
            {},
            ["--url", "http://127.0.0.1:9", "--api-key-env", "NO_KEY"],
            "--api-key-env: set the environment variable NO_KEY to an API key",
        ),
        ({"prompts": "prompts.jsonl"}, ["--model", "m", "--url", "http://127.0.0.1:9"], "cannot be reached"),
        ({"prompts": "prompts.jsonl"}, ["--model", "m", "--url", "127.0.0.1:9"], "--url: must begin with http://"),
        ({}, ["--url", "localhost:9"], "--url: must begin with http:// or https://."),
        (
            {"prompts": "prompts.jsonl", "conditions": {"x": {"model": "m"}}},
            ["--guidance", "beam_width=2"],
            "--guidance: no condition of the file has guidance that it could change.",
        ),
        (
            {"prompts": "prompts.jsonl"},
            ["--model", "m", "--model", "m", "--guidance", "beam_width=2"],
            "--model: `m` is there twice;",
        ),
        (
            {"prompts": "prompts.jsonl", "conditions": {"x": {"model": "m", "guidance": {"beam_width": []}}}},
            [],
            "guidance.beam_width: an empty list is no value, and makes no grid.",
        ),
        (
            {"sampling": {"user": date(2026, 1, 2)}},
            [],
            "sampling.user: `2026-01-02` is not a value of JSON; quote",
        ),
        ({"sampling": {"temperature": math.inf}}, [], "sampling.temperature: `inf` is not a value of JSON"),
        (
            {"prompts": "prompts.jsonl", "split": "test"},
            [],
            "split: only a data set has splits, not a file",
        ),
        (
            {"prompts": "prompts.jsonl"},
            ["--split", "test"],
            "split: only a data set has splits, not a file",
        ),
    ],
)
def test_a_mistake_is_one_line(
    content: dict[str, Any], flags: list[str], message: str, experiment: Path, tmp_path: Path
) -> None:
    experiment.write_text(yaml.safe_dump(content), encoding="utf-8")
    found = run(experiment, *flags, "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert message in found.stderr
    assert found.stderr.startswith("w2s: ")
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["prompts.jsonl", "answers.jsonl", "experiment.json"])
def test_a_folder_with_somebody_elses_file_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    mine = tmp_path / name
    mine.write_text('{"prompt": "Frage", "own": 1}\n', encoding="utf-8")
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text('{"prompt": "Frage"}\n', encoding="utf-8")
    found = run("--prompts", prompts, "--model", "m", "--url", "http://127.0.0.1:9", "--out", tmp_path)
    assert found.exit_code == 2
    assert f"has a {name} that is not of an evaluation. Choose another --out." in found.stderr
    assert mine.read_text(encoding="utf-8") == '{"prompt": "Frage", "own": 1}\n'


@pytest.mark.parametrize("key", ["sk-secret\nx", "sk-secret\u20ac", " "])
def test_a_key_that_no_header_can_carry_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MY_KEY", key)
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text('{"prompt": "Frage"}\n', encoding="utf-8")
    asked = ("--prompts", prompts, "--model", "m", "--out", tmp_path / "out")
    found = run(*asked, "--url", "http://127.0.0.1:9", "--api-key-env", "MY_KEY")
    assert (found.exit_code, found.stderr) == (
        2,
        "w2s: --api-key-env: set the environment variable MY_KEY to an API key.\n",
    )
    found = run(*asked, "--url", "http://user:sk-secret@127.0.0.1:9")
    assert found.exit_code == 2
    assert "must not contain a user name or password" in found.stderr
    assert "sk-secret" not in found.output


@pytest.mark.parametrize("text", ["prompts: " + "[" * 5000, "prompts: 2026-02-30"])
def test_a_file_that_yaml_cannot_read(experiment: Path, tmp_path: Path, text: str) -> None:
    experiment.write_text(text, encoding="utf-8")
    found = run(experiment, "--out", tmp_path / "out")
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1), found.output
    assert found.stderr.startswith(f"w2s: {experiment}: ")


def test_answers_of_something_else(experiment: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "experiment.json").write_text('{"baseline": "plain", "conditions": {}, "judges": {}}', encoding="utf-8")
    (out / "answers.jsonl").write_text('{"prompt": "Frage", "own": 1}\n', encoding="utf-8")
    found = run(experiment, "--url", "http://127.0.0.1:9", "--out", out)
    assert (found.exit_code, found.stderr) == (
        2,
        f"w2s: {out}/answers.jsonl, line 1: is not a record of an evaluation.\n",
    )


def test_answers_of_models_that_have_changed(experiment: Path, tmp_path: Path) -> None:
    model, out = str(save_tiny(tmp_path / "large")), tmp_path / "out"
    config = {"large_models": {"large": {"model": model}}, "served_models": {"plain": {"large": "large"}}}
    served = tmp_path / "w2s.yaml"
    served.write_text(json.dumps(config), encoding="utf-8")
    asked = ("--prompts", experiment.with_name("prompts.jsonl"), "--model", "plain", "--max-tokens", 2, "--limit", 1)
    found = run(*asked, "--config", served, "--out", out)
    assert found.exit_code == 0, found.output
    served.write_text(json.dumps(config | {"workers": {"dtype": "bfloat16"}}), encoding="utf-8")
    found = run(*asked, "--config", served, "--out", out)
    assert found.exit_code == 2
    assert 'which differs in workers.dtype (was "auto", is "bfloat16"). Choose' in found.stderr


def test_the_split_of_a_file_may_be_the_default(experiment: Path, tmp_path: Path) -> None:
    experiment.write_text(experiment.read_text(encoding="utf-8") + "split: train\n", encoding="utf-8")
    found = run(experiment, "--url", "http://127.0.0.1:9", "--out", tmp_path / "out")
    assert "cannot be reached" in found.stderr


def test_a_mistyped_preset_is_told_the_presets(tmp_path: Path) -> None:
    found = run("summarisation", "--out", tmp_path / "out")
    assert found.exit_code == 2
    message = "no such file, nor a preset; those are instructions, summarization."
    assert found.stderr == f"w2s: summarisation: {message}\n"


def test_a_preset_says_what_it_asks_of_the_server(experiment: Path, tmp_path: Path) -> None:
    model, prompts = str(save_tiny(tmp_path / "large")), experiment.with_name("prompts.jsonl")
    served = tmp_path / "w2s.yaml"
    for name, message in (
        ("mine", "conditions.base.model: the server has no `large` (it serves: mine)."),
        ("large", "conditions.best-of-4.guidance.pairs: the server has no `helpful` (it has: none)."),
    ):
        config = {"large_models": {"l": {"model": model}}, "served_models": {name: {"large": "l"}}}
        served.write_text(json.dumps(config), encoding="utf-8")
        found = run("instructions", "--prompts", prompts, "--config", served, "--out", tmp_path / "out")
        assert found.exit_code == 2
        assert found.stderr.endswith(
            f"w2s: {message} The preset instructions asks for a served model named `large` and a pair named `helpful`: "
            "see deploy/tasks/instructions.yaml.\n"
        )
        assert not (tmp_path / "out").exists()
