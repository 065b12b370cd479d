"""The sampling extensions: the engine's request that results, and rejections that name the field."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.api.test_requests import BOTH, Asker, ask
from w2s_core.types import ChatPrompt, SamplingParams, TextPrompt

__all__ = ["ask"]  # a fixture

ACCEPTED: list[tuple[str, Any, Any]] = [
    ("min_p", 0, 0),
    ("min_p", 1, 1),
    ("presence_penalty", -2, -2),
    ("presence_penalty", 2.0, 2.0),
    ("frequency_penalty", -2.0, -2.0),
    ("frequency_penalty", 2, 2),
    ("repetition_penalty", 1e-9, 1e-9),
    ("repetition_penalty", 2, 2),
    ("logit_bias", {}, ()),
    ("logit_bias", {"0": -100, "50256": 100.0, "7": 0.5}, ((0, -100), (50256, 100.0), (7, 0.5))),
    ("min_tokens", 0, 0),
    ("min_tokens", 5, 5),
    ("ignore_eos", True, True),
    ("stop_token_ids", [], ()),
    ("stop_token_ids", [3, 5], (3, 5)),
    ("allowed_token_ids", [3], (3,)),
    ("bad_words", [], ()),
    ("bad_words", ["a", " bad word"], ("a", " bad word")),
    ("include_stop_str_in_output", True, True),
    ("skip_special_tokens", False, False),
]
REFUSED: list[tuple[str, Any, str]] = [
    ("min_p", -0.01, "min_p"),
    ("min_p", 1.01, "min_p"),
    ("min_p", "0.1", "min_p"),
    ("presence_penalty", 2.01, "presence_penalty"),
    ("presence_penalty", False, "presence_penalty"),
    ("frequency_penalty", -2.01, "frequency_penalty"),
    ("frequency_penalty", "0", "frequency_penalty"),
    ("repetition_penalty", 0, "repetition_penalty"),
    ("repetition_penalty", 2.01, "repetition_penalty"),
    ("logit_bias", [], "logit_bias"),
    ("logit_bias", {"7": 100.1}, "logit_bias.7"),
    ("logit_bias", {"7": None}, "logit_bias.7"),
    ("logit_bias", {"7": "1"}, "logit_bias.7"),
    ("logit_bias", {"seven": 1}, "logit_bias.seven"),
    ("logit_bias", {"-7": 1}, "logit_bias.-7"),
    ("logit_bias", {"07": 1}, "logit_bias.07"),
    ("min_tokens", -1, "min_tokens"),
    ("min_tokens", 1.5, "min_tokens"),
    ("ignore_eos", 1, "ignore_eos"),
    ("stop_token_ids", 5, "stop_token_ids"),
    ("stop_token_ids", [-1], "stop_token_ids.0"),
    ("stop_token_ids", [1, "2"], "stop_token_ids.1"),
    ("allowed_token_ids", [], "allowed_token_ids"),
    ("allowed_token_ids", [True], "allowed_token_ids.0"),
    ("bad_words", "bad", "bad_words"),
    ("bad_words", ["a", ""], "bad_words.1"),
    ("bad_words", ["\ud800"], "bad_words.0"),
    ("include_stop_str_in_output", "yes", "include_stop_str_in_output"),
    ("skip_special_tokens", 0, "skip_special_tokens"),
    ("add_special_tokens", "no", "add_special_tokens"),
    ("truncate_prompt_tokens", 0, "truncate_prompt_tokens"),
    ("truncate_prompt_tokens", -2, "truncate_prompt_tokens"),
    ("truncate_prompt_tokens", 1.5, "truncate_prompt_tokens"),
]


@BOTH
@pytest.mark.parametrize(("field", "value", "becomes"), ACCEPTED)
async def test_what_reaches_the_engine(ask: Asker, endpoint: str, field: str, value: Any, becomes: Any) -> None:
    request = await ask.asked(endpoint, **{field: value})
    assert getattr(request.sampling, field) == becomes


@BOTH
@pytest.mark.parametrize(("field", "value", "param"), REFUSED)
async def test_what_is_out_of_range(ask: Asker, endpoint: str, field: str, value: Any, param: str) -> None:
    assert await ask.refused(endpoint, **{field: value}) == param


@BOTH
async def test_null_is_not_given(ask: Asker, endpoint: str) -> None:
    nulls = dict.fromkeys({field for field, *_ in ACCEPTED + REFUSED})
    request = await ask.asked(endpoint, **nulls)
    assert request == await ask.asked(endpoint)
    assert request.sampling == SamplingParams(max_tokens=request.sampling.max_tokens)


@pytest.mark.parametrize(("given", "raw", "chat"), [(None, True, False), (True, True, True), (False, False, False)])
async def test_special_tokens_of_prompts(ask: Asker, given: bool | None, raw: bool, chat: bool) -> None:
    """vLLM's defaults: added to a text prompt, not to a conversation, whose template writes them."""
    [prompt] = (await ask.asked("completions", add_special_tokens=given)).prompts
    assert prompt == TextPrompt("x", special_tokens=raw)
    [prompt] = (await ask.asked("chat", add_special_tokens=given)).prompts
    assert isinstance(prompt, ChatPrompt)
    assert prompt.special_tokens is chat


@BOTH
@pytest.mark.parametrize("value", [-1, 1, 100])
async def test_truncation_reaches_the_engine(ask: Asker, endpoint: str, value: int) -> None:
    assert (await ask.asked(endpoint, truncate_prompt_tokens=value)).truncate_prompt_tokens == value
