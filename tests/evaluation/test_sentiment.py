"""The whole command on tiny random models, and the likelihood evaluator against plain transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from server.cli import main
from server.commands import eval_sentiment
from server.settings.config import DEMO
from tests.remote.fake_provider import MODEL
from tests.replica import served
from tests.tiny import BOS, byte_tokenizer, save_tiny, tiny_model
from w2s_core.demo.data import Sentence
from w2s_core.evaluation import sentiment
from w2s_core.evaluation.likelihood import open_evaluator
from w2s_core.evaluation.prompts import PREFIX
from w2s_core.evaluation.settings import DEMO_TEMPLATE, MAIN, Settings
from w2s_core.types import Hypothesis

SENTENCES = tuple(Sentence(text, rating) for text, rating in [("good film", 2.0), ("bad film", -2.0)] * 5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings that name tiny models instead of the demo's."""
    root = tmp_path_factory.mktemp("models")
    names = {"large": 0, "tuned": 1, "untuned": 2}
    return {name: str(save_tiny(root / name, seed=seed, template=None)) for name, seed in names.items()}


def test_the_command_from_openers_to_files(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentiment, "splits", lambda: (SENTENCES, SENTENCES, SENTENCES))
    monkeypatch.setattr(eval_sentiment, "Settings", lambda **options: Settings(**options, **tiny))
    flags = ["--prompts", "2", "--seeds", "1", "--max-tokens", "6", "--dtype", "float32", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, ["eval", "sentiment", *flags], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "CBS 4/4/5" in result.stdout
    assert "left" in result.stderr, "a progress bar"
    content = json.loads((tmp_path / "sentiment.json").read_text(encoding="utf-8"))
    assert len(content["answers"]) == 2 * (len(MAIN) + 4)
    methods = {row["condition"]: row["estimates"] for row in content["comparisons"][0]["summaries"]}
    assert methods["CBS 4/4/5"]["implicit"]["mean"] > methods["Base"]["implicit"]["mean"]
    assert (tmp_path / "sentiment.png").read_bytes().startswith(b"\x89PNG")


def test_the_large_model_may_be_somewhere_else(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentiment, "splits", lambda: (SENTENCES, SENTENCES, SENTENCES))
    monkeypatch.setattr(eval_sentiment, "Settings", lambda **options: Settings(**options, **tiny))
    flags = ["--prompts", "2", "--seeds", "1", "--max-tokens", "6", "--no-ablation", "--out", str(tmp_path)]
    with served([sys.executable, "-m", "tests.remote.provider_process", tiny["large"]], {}) as provider:
        flags += ["--large-at", f"{provider.url}/large", MODEL]
        result = CliRunner().invoke(main, ["eval", "sentiment", *flags], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    answers = json.loads((tmp_path / "sentiment.json").read_text(encoding="utf-8"))["answers"]
    drawn_there = {answer["method"] for answer in answers if set(answer["text"]) <= set("abcdé☃")}
    assert drawn_there == {name for name in MAIN if name != "Weak"}


async def test_the_instrument_reads_what_transformers_reads(tiny: dict[str, Any]) -> None:
    opener, text = "This movie is", " fine"
    tokenizer = byte_tokenizer()

    def logprob(seed: int, prompt: list[int], answer: list[int]) -> float:
        with torch.inference_mode():
            logits = tiny_model(seed=seed)(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        return sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(answer))

    answer = tokenizer.encode(text, add_special_tokens=False)
    before = tokenizer.encode(PREFIX + opener, add_special_tokens=False)
    async with open_evaluator(Settings(prompt_template="", **tiny)) as evaluator:
        likelihood = await evaluator.log_likelihood(opener, text)
        ratio = await evaluator.implicit_score(opener, Hypothesis(text=text))
        assert await evaluator.log_likelihood(opener, "") is None
    assert likelihood == pytest.approx(logprob(0, before, answer) / len(answer), abs=1e-3)
    assert ratio == pytest.approx(logprob(1, [BOS], answer) - logprob(2, [BOS], answer), abs=1e-3)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "w2s_core.evaluation.sentiment", None)
    result = CliRunner().invoke(main, ["eval", "sentiment"])
    assert result.exit_code == 2
    assert "w2s-server[eval]" in result.stderr


def test_the_default_template_is_what_the_server_serves() -> None:
    assert DEMO["pairs"]["positive"]["prompt_template"] == DEMO_TEMPLATE


def test_the_command_is_registered() -> None:
    group = main.commands["eval"]
    assert isinstance(group, click.Group)
    assert set(group.commands) >= {"run", "sentiment"}
