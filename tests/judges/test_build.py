"""Judges of their configuration: functions, pairs and reward models, and mistakes, which name their key."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from server.commands.judge_sections import judge_configs
from tests.judges.answers import case, record
from tests.tiny import BOS, EOS, save_tiny, save_tiny_classifier
from w2s_core.config import WorkersConfig
from w2s_core.errors import ConfigurationError, RequestError
from w2s_core.evaluation.records import EvalPrompt
from w2s_core.judges.build import make_judge
from w2s_core.judges.config import PythonJudgeConfig
from w2s_core.judges.judge import Case, Opinion
from w2s_core.judges.scorer_judge import scorer_judge
from w2s_core.scorers.answer_scorer import AnswerScorer
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Prompt

TEXT = EvalPrompt("t", ("Once upon",), chat=False)
WORKERS = WorkersConfig(devices=("cpu",), dtype="float32", threads=1)


async def opinions(section: dict[str, Any], *which: Case) -> list[Opinion]:
    (config,) = judge_configs({"j": section}).values()
    async with make_judge("j", config, WORKERS).start as judge:
        return [await judge(each) for each in which]


async def opinion(section: dict[str, Any], which: Case) -> Opinion:
    (found,) = await opinions(section, which)
    return found


def log_likelihood(folder: Path, tokens: list[int]) -> float:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logprobs = model(torch.tensor([[BOS, *tokens]])).logits[0].log_softmax(-1)
    return float(sum(logprobs[i, token] for i, token in enumerate(tokens)))


async def test_a_pair_judges_by_its_log_ratio_of_the_whole_answer(tmp_path: Path) -> None:
    tuned, untuned = (save_tiny(tmp_path / name, seed=seed) for seed, name in enumerate(("tuned", "untuned")))
    pair = {"tuned": str(tuned), "untuned": str(untuned), "prompt_template": ""}
    reasons = {"stop": [EOS], "length": []}
    found = await opinions(
        {"pair": pair},
        *(Case(TEXT, record("t", "ours", " a time", finish_reason=reason)) for reason in reasons),
        Case(TEXT, record("t", "ours", "long " * 5000)),
    )
    tokens = HFTokenizer(str(tuned)).encode(" a time", special_tokens=False)
    for opinion, end in zip(found, reasons.values(), strict=False):
        ratio = log_likelihood(tuned, [*tokens, *end]) - log_likelihood(untuned, [*tokens, *end])
        assert opinion.value == pytest.approx(ratio, abs=1e-3)
    assert found[-1] == Opinion(None, "it does not fit the judge's context")


async def test_two_turns_count_as_their_mean_and_the_second_is_read_behind_the_first() -> None:
    read: list[list[str]] = []

    def lengths(prompt: Any, answers: list[str]) -> list[int]:
        read.append([message["content"] for message in prompt.messages])
        return [len(answer) for answer in answers]

    judge = scorer_judge("judges.j", AnswerScorer(lengths, whole_prompt=True))
    two = Case(EvalPrompt("mt", ("First?", "Second?")), record("mt", "ours", "12345", "123"), "Be brief.")
    assert await judge(two) == Opinion(4.0)
    assert read == [["Be brief.", "First?"], ["Be brief.", "First?", "12345", "Second?"]]


async def test_a_scorer_that_cannot_read_the_prompt_ends_the_run_with_the_judges_name() -> None:
    class Picky(AnswerScorer):
        def check(self, prompt: Prompt, max_tokens: int) -> int:
            raise RequestError("It has no chat template.")

    with pytest.raises(ConfigurationError, match=r"^judges.j.pair: It has no chat template"):
        await scorer_judge("judges.j.pair", Picky(lambda _, answers: [0.0 for _ in answers]))(case("a", "b"))


async def test_a_reward_model_judges_by_its_reward(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = save_tiny_classifier(tmp_path / "reward")
    section = {"reward_model": {"model": str(folder), "prompt_template": ""}}
    found = await opinion(section, Case(TEXT, record("t", "ours", " a time", finish_reason="length")))
    tokens = HFTokenizer(str(folder)).encode(" a time", special_tokens=False)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        reward = float(model(torch.tensor([[BOS, *tokens]])).logits[0, 0])
    assert found.value == pytest.approx(reward, abs=1e-3)


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w2s_test_judges.py").write_text(
        "def ends(prompt, answer): return answer.endswith(prompt[-1])\n"
        "def fails(prompt, answer): raise LookupError('no such word')\n"
        "def nothing(prompt, answer): return float('nan')\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.usefixtures("functions")
async def test_a_function_judges_each_turn_and_a_continued_text_with_its_beginning() -> None:
    section = {"python": "w2s_test_judges:ends"}
    two = Case(EvalPrompt("mt", ("a", "b")), record("mt", "ours", "xa", "xx"))
    assert (await opinion(section, two)).value == 0.5
    prompt = EvalPrompt("t", ("Once upon",), chat=False, answer_prefix="upon")
    assert (await opinion(section, case("", "", prompt))).value == 1.0


@pytest.mark.usefixtures("functions")
async def test_a_function_that_fails_ends_the_run_with_its_name() -> None:
    with pytest.raises(ConfigurationError, match=r"^judges.j.python: the function raised LookupError: no such word"):
        await opinion({"python": "w2s_test_judges:fails"}, case("a", "b"))
    with pytest.raises(ConfigurationError, match=r"^judges.j.python: the function returned nan"):
        await opinion({"python": "w2s_test_judges:nothing"}, case("a", "b"))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "judges.j: must have one of the keys pair, reward_model, llm and python"),
        ({"python": "a:b", "llm": {"base_url": "http://x", "model": "m"}}, "judges.j: must have one of the keys"),
        ({"likes": 1}, "judges.j.likes: unknown key"),
        ({"pair": {"tuned": "x"}}, "judges.j.pair.untuned: Field required"),
        ({"pair": {"tuned": "x", "untuned": None, "seed": 1}}, "judges.j.pair.seed: unknown key"),
        ({"pair": {"backend": "far"}}, "judges.j.pair.backend: must be `local` or `remote`"),
        ({"reward_model": {"model": "x", "labell": "y"}}, "judges.j.reward_model.labell: unknown key"),
        ({"llm": {"model": "m"}}, "judges.j.llm.base_url: Field required"),
        ({"llm": {"base_url": "x", "model": "m"}}, "judges.j.llm.base_url: must begin with http://"),
        ({"llm": {"base_url": "http://x", "model": "m", "prompt": "{answer_a}"}}, "judges.j.llm.prompt: must have"),
        (
            {"pair": {"backend": "remote", "tuned": {"base_url": "x", "model": "m"}, "untuned": None}},
            "judges.j.pair.tuned.base_url: must begin with",
        ),
    ],
)
def test_a_mistake_in_the_section_names_its_key(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        judge_configs({"j": section})
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"python": "nowhere"}, 'judges.j.python: must be "package.module:function", not `nowhere`.'),
        ({"python": "w2s_nowhere:f"}, "judges.j.python: there is no module `w2s_nowhere`."),
        (
            {"llm": {"base_url": "http://x", "model": "m", "api_key_env": "NO_KEY"}},
            "judges.j.llm.api_key_env: set the environment variable NO_KEY to an API key.",
        ),
        ({"pair": {"tuned": "/nowhere", "untuned": None}}, "judges.j.pair"),
        (
            {"pair": {"tuned": "demo:reviews-negative", "untuned": None, "devices": ["cuda:7"]}},
            "judges.j.pair.devices: must be some of",
        ),
    ],
)
def test_what_cannot_be_used_is_found_before_anything_is_judged(section: dict[str, Any], message: str) -> None:
    (config,) = judge_configs({"j": section}).values()
    with pytest.raises(ConfigurationError) as raised:
        make_judge("j", config, WORKERS)
    assert str(raised.value).startswith(message)


def test_the_judge_of_film_reviews_is_a_function() -> None:
    config = PythonJudgeConfig("w2s_core.evaluation.judge:positive")
    assert make_judge("film", config, WORKERS).pairwise is False
    from w2s_core.evaluation.judge import positive

    assert positive("", "a wonderful, moving film") > 0.5 > positive("", "a dull and stupid mess")
