"""The paper's other two tasks end to end: their files as they are, but for the models' names and tiny data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from server.cli import main
from tests.replica import ROOT
from tests.tiny import save_tiny
from w2s_core.evaluation.records import AnswerRecord, read_records

POSTS = [f"SUBREDDIT: r/cats\n\nTITLE: Cat {i}\n\nPOST: My cat sleeps.\n\nTL;DR:" for i in range(24)]


def w2s(*arguments: str) -> None:
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 0, found.output


def config(task: str, folder: Path, names: dict[str, str]) -> Path:
    """The task's configuration with other models behind its names."""
    text = (ROOT / f"deploy/tasks/{task}.yaml").read_text(encoding="utf-8")
    for name, model in names.items():
        assert f'"{name}"' in text
        text = text.replace(f'"{name}"', f'"{model}"')
    path = folder / f"{task}.yaml"
    content: dict[str, Any] = yaml.safe_load(text)
    path.write_text(yaml.safe_dump(content | {"workers": {"threads": 1, "dtype": "float32"}}), encoding="utf-8")
    return path


def lines(path: Path, *records: Any) -> str:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("large") / "model", seed=5))


def answered(out: Path) -> list[tuple[str, str]]:
    return sorted((record.condition, record.prompt) for record in read_records(out / "answers.jsonl", AnswerRecord))


def test_summarization(large: str, tmp_path: Path) -> None:
    base = str(save_tiny(tmp_path / "small", family="gpt2"))
    preferences = [{"prompt": post, "chosen": " It sleeps.", "rejected": " Dogs!"} for post in POSTS]
    data, pair = lines(tmp_path / "preferences.jsonl", *preferences), tmp_path / "tldr"
    options = ["--adapt-epochs", "1", "--epochs", "1", "--batch-size", "8", "--learning-rate", "0.001"]
    w2s("pair", "train", "--base", base, "--data", data, "--method", "dpo", "--out", str(pair), *options)
    names = {"openai-community/gpt2-xl": large, "tldr/tuned": f"{pair}/tuned", "tldr/untuned": f"{pair}/untuned"}
    posts = [{"prompt": post, "completion": " Cats."} for post in POSTS]
    where = ["--config", str(config("summarization", tmp_path, names)), "--out", str(tmp_path / "out")]
    few = ["--prompts", lines(tmp_path / "posts.jsonl", *posts), "--limit", "2", "--max-tokens", "6"]
    w2s("eval", "run", "summarization", *where, *few)
    conditions = ["CBS 4/4/5", "CBS 4/4/5, brakes", "base", "best-of-16"]
    assert answered(tmp_path / "out") == [(condition, prompt) for condition in conditions for prompt in ("1", "2")]
    [first, _] = (tmp_path / "out/prompts.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["turns"] == [POSTS[0]]
    assert not json.loads(first)["chat"], "the post is continued, not answered"


def test_instructions(large: str, tmp_path: Path) -> None:
    tuned, untuned = (str(save_tiny(tmp_path / name, seed=seed)) for seed, name in enumerate(("tuned", "untuned")))
    names = {
        "meta-llama/Meta-Llama-3-8B-Instruct": large,
        "HuggingFaceH4/zephyr-7b-beta": tuned,
        "HuggingFaceH4/mistral-7b-sft-beta": untuned,
    }
    prompts = tmp_path / "alpaca_eval.json"
    prompts.write_text(json.dumps([{"dataset": "koala", "instruction": f"Do {i}", "output": "x"} for i in range(3)]))
    where = ["--config", str(config("instructions", tmp_path, names)), "--out", str(tmp_path / "out")]
    w2s("eval", "run", "instructions", *where, "--prompts", str(prompts), "--limit", "2", "--max-tokens", "40")
    conditions = ["CBS 2/2/30", "base", "best-of-4", "best-of-8"]
    assert answered(tmp_path / "out") == [(condition, prompt) for condition in conditions for prompt in ("1", "2")]
