"""The official OpenAI client with strict validation: every mode of legacy completions, complete and streamed.

The client's types do not allow two things that OpenAI's API sends: `finish_reason: null` in a stream's chunks, and the
nulls of the first token of an echoed prompt. Such responses are validated as strictly by types that differ only in
this; `test_what_the_clients_own_types_do_not_allow` fails when these are no longer needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import openai
import pydantic
import pytest
from openai.types import Completion, CompletionChoice
from openai.types.completion_choice import Logprobs

from tests.clients.conftest import WAYS, Caller, tokens_of
from tests.tiny import byte_tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT = "Once upon a time, né €"
IDS: list[int] = byte_tokenizer().encode(TEXT)
CBS = {"pairs": {"pair": 1.0}, "beam_width": 2, "successors": 2, "chunk_length": 5}
BEST = {"method": "best_of_n", "pairs": {"pair": 1.0}, "successors": 4}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


class EchoedLogprobs(Logprobs):
    token_logprobs: list[float | None] | None = None  # type: ignore[assignment]
    top_logprobs: list[dict[str, float] | None] | None = None  # type: ignore[assignment]


class EchoedChoice(CompletionChoice):
    logprobs: EchoedLogprobs | None = None


class Echoed(Completion):
    choices: list[EchoedChoice]  # type: ignore[assignment]


class StreamedChoice(EchoedChoice):
    finish_reason: Literal["stop", "length"] | None  # type: ignore[assignment]


class Streamed(Completion):
    choices: list[StreamedChoice]  # type: ignore[assignment]


async def ask_for(call: Caller, ask: dict[str, Any]) -> Any:
    """Validates with the client's own type wherever that allows what OpenAI sends."""
    if not ask.get("echo"):
        return await call("completions.create", **ask)
    body = {key: value for key, value in ask.items() if key != "extra_body"} | ask.get("extra_body", {})
    return await call("post", path="/completions", cast_to=Echoed, body=body)


async def streamed(call: Caller, kind: str, ask: dict[str, Any]) -> list[Streamed]:
    body = {key: value for key, value in ask.items() if key != "extra_body"} | ask.get("extra_body", {})
    stream_cls = (openai.Stream if kind == "sync" else openai.AsyncStream)[Streamed]  # type: ignore[index]
    body |= {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    return await call("post", path="/completions", cast_to=Streamed, body=body, stream=True, stream_cls=stream_cls)


def check_whole(answer: Any, count: int) -> None:
    assert (answer.object, answer.id[:5]) == ("text_completion", "cmpl-")
    assert [choice.index for choice in answer.choices] == list(range(count))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert all(choice.finish_reason in ("stop", "length") for choice in answer.choices)


def close(value: Any) -> Any:
    """Compares with a tolerance, because rounding depends on what else is in a batch."""
    return value if value is None or isinstance(value, str) else pytest.approx(value, abs=1e-3)


def check_stream(chunks: list[Streamed], answer: Any) -> None:
    """The chunks add up to the complete response, choice by choice, and so does the running usage."""
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    for choice in answer.choices:
        mine = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(c.text for c in mine) == choice.text
        assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]
        assert mine[-1].finish_reason, "the end comes last"
        if choice.logprobs is not None:
            told = [c.logprobs for c in mine if c.logprobs]
            for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                values = [value for one in told for value in getattr(one, key)]
                for value, expected in zip(values, getattr(choice.logprobs, key), strict=True):
                    assert value == close(expected)
    *others, last = chunks
    assert (last.choices, tokens_of(last)) == ([], tokens_of(answer))
    counts = [chunk.usage.completion_tokens for chunk in others if chunk.usage]
    assert len(counts) == len(others)
    assert counts == sorted(counts)
    assert counts[-1] == answer.usage.completion_tokens


CASES: dict[str, tuple[dict[str, Any], int]] = {  # what is asked, and how many choices come
    "text": ({"prompt": TEXT}, 1),
    "texts": ({"prompt": [TEXT, "x"]}, 2),
    "token ids": ({"prompt": IDS}, 1),
    "token id lists": ({"prompt": [IDS, [120], [121, 122]]}, 3),
    "empty text": ({"prompt": ""}, 1),
    "n": ({"prompt": ["x", "y"], "n": 2}, 4),
    "greedy": ({"prompt": TEXT, "temperature": 0}, 1),
    "stop": ({"prompt": TEXT, "stop": ["a", "e", "\n", " "], "max_tokens": 60}, 1),
    "logprobs 0": ({"prompt": TEXT, "logprobs": 0}, 1),
    "logprobs 5": ({"prompt": ["x", TEXT], "logprobs": 5, "n": 2}, 4),
    "echo": ({"prompt": TEXT, "echo": True}, 1),
    "echo, logprobs": ({"prompt": [IDS, [97, 98]], "echo": True, "logprobs": 2}, 2),
    "scoring": ({"prompt": TEXT, "echo": True, "logprobs": 1, "max_tokens": 0}, 1),
    "penalties, bias": (
        {"prompt": TEXT, "presence_penalty": 1, "frequency_penalty": -0.5, "logit_bias": {"97": 5}, "top_p": 0.9},
        1,
    ),
    "vLLM's sampling": ({"prompt": TEXT, "extra_body": {"top_k": 20, "min_p": 0.01, "min_tokens": 3}}, 1),
    "token ids told": ({"prompt": TEXT, "extra_body": {"return_token_ids": True}}, 1),
    "user": ({"prompt": TEXT, "user": "me"}, 1),
    "schema": ({"prompt": TEXT, "max_tokens": 90, "extra_body": {"guided_json": SCHEMA}}, 1),
    "choice": ({"prompt": TEXT, "extra_body": {"structured_outputs": {"choice": ["yes", "no"]}}}, 1),
}


@WAYS
@pytest.mark.parametrize("case", CASES)
async def test_every_mode_whole_and_streamed(call: Caller, kind: str, model: str, case: str) -> None:
    ask, count = CASES[case]
    ask = {"model": model, "seed": 5, "max_tokens": 12, **ask}
    answer = await ask_for(call, ask)
    check_whole(answer, count)
    check_stream(await streamed(call, kind, ask), answer)
    assert (answer.model_extra.get("guidance") is not None) == (model != "plain")


def _answered(answer: Any, ask: dict[str, Any]) -> list[str]:
    return [choice.text for choice in answer.choices]


def _best_of(answer: Any, ask: dict[str, Any]) -> None:
    assert answer.usage.completion_tokens >= len(answer.choices)


def _prompt_logprobs(answer: Any, ask: dict[str, Any]) -> None:
    [choice] = answer.choices
    told = choice.model_extra["prompt_logprobs"]
    assert [told[0], len(told)] == [None, len(IDS)]
    for token, entry in zip(IDS[1:], told[1:], strict=True):
        assert len(entry) in (2, 3)
        assert entry[str(token)]["logprob"] <= 0


def _token_ids(answer: Any, ask: dict[str, Any]) -> None:
    [choice] = answer.choices
    assert choice.model_extra["prompt_token_ids"] == IDS
    assert len(choice.model_extra["token_ids"]) == answer.usage.completion_tokens


def _logprobs(answer: Any, ask: dict[str, Any]) -> None:
    told = answer.choices[0].logprobs
    assert len(told.tokens) == len(told.text_offset) == answer.usage.completion_tokens
    for token, nats, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert top[token] == nats <= 0
        assert 1 <= len(top) <= ask["logprobs"] + 1


def _echo(answer: Any, ask: dict[str, Any]) -> None:
    [choice] = answer.choices
    assert choice.text.startswith(TEXT)
    assert (choice.logprobs.token_logprobs[0], choice.logprobs.top_logprobs[0]) == (None, None)
    assert len(choice.logprobs.tokens) == answer.usage.total_tokens
    assert all(nats <= 0 for nats in choice.logprobs.token_logprobs[1:])


def _scored(answer: Any, ask: dict[str, Any]) -> None:
    _echo(answer, ask)
    [choice] = answer.choices
    assert (choice.text, answer.usage.completion_tokens) == (TEXT, 0)
    assert math.isfinite(choice.model_extra["guidance"]["scores"]["pair"])


def _searched(answer: Any, ask: dict[str, Any]) -> None:
    report, asked = answer.model_extra["guidance"], ask["extra_body"]["guidance"]
    assert report.items() >= {key: asked[key] for key in asked if key != "pairs"}.items()
    assert report["method"] == asked.get("method", "cbs")
    assert report["sampled_tokens"] > answer.usage.completion_tokens
    [choice] = answer.choices
    assert choice.model_extra["guidance"]["score"] == choice.model_extra["guidance"]["scores"]["pair"]


def _followed(answer: Any, ask: dict[str, Any]) -> None:
    assert answer.choices[0].text in ("yes", "no")


ECHO = {"prompt": TEXT, "echo": True, "logprobs": 2}
CHOICE = {"guided_choice": ["yes", "no"]}
CHECKED: dict[str, tuple[dict[str, Any], Callable[[Any, dict[str, Any]], Any]]] = {
    "best_of": ({"prompt": TEXT, "n": 2, "best_of": 4}, _best_of),
    "prompt_logprobs": ({"prompt": TEXT, "extra_body": {"prompt_logprobs": 2}}, _prompt_logprobs),
    "return_token_ids": ({"prompt": TEXT, "extra_body": {"return_token_ids": True}}, _token_ids),
    "logprobs": ({"prompt": TEXT, "logprobs": 3, "temperature": 0.5}, _logprobs),
    "echo": (ECHO, _echo),
    "scoring": ({**ECHO, "max_tokens": 0, "extra_body": {"guidance": CBS}}, _scored),
    "cbs": ({"prompt": TEXT, "extra_body": {"guidance": CBS}}, _searched),
    "best_of_n": ({"prompt": TEXT, "extra_body": {"guidance": BEST}}, _searched),
    "structured search": ({"prompt": TEXT, "extra_body": {"guidance": CBS, **CHOICE}}, _followed),
}


@pytest.mark.parametrize("case", CHECKED)
async def test_what_a_mode_tells(call: Caller, case: str) -> None:
    asked, check = CHECKED[case]
    ask = {"model": "plain", "seed": 5, "max_tokens": 12, **asked}
    check(await ask_for(call, ask), ask)


@WAYS
async def test_the_four_forms_of_a_prompt_are_one(call: Caller, model: str) -> None:
    forms = [TEXT, [TEXT], IDS, [IDS]]
    texts = [
        _answered(await call("completions.create", model=model, prompt=form, seed=2, max_tokens=20), {})
        for form in forms
    ]
    assert texts == [texts[0]] * 4
    assert texts[0][0]


@pytest.mark.parametrize(
    ("ask", "problems"),
    [
        ({"stream": True}, {("choices", 0, "finish_reason"): "literal_error"}),
        (
            {"echo": True, "logprobs": 1},
            {
                ("choices", 0, "logprobs", "token_logprobs", 0): "float_type",
                ("choices", 0, "logprobs", "top_logprobs", 0): "dict_type",
            },
        ),
    ],
    ids=["streamed", "echoed"],
)
async def test_what_the_clients_own_types_do_not_allow(
    call: Caller, ask: dict[str, Any], problems: dict[tuple[Any, ...], str]
) -> None:
    """OpenAI sends these nulls, too. If this fails, the client was fixed, and its own types can be used above."""
    with pytest.raises(openai.APIResponseValidationError) as raised:
        await call("completions.create", model="plain", prompt=TEXT, **ask)
    cause = raised.value.__cause__
    assert isinstance(cause, pydantic.ValidationError)
    assert {error["loc"]: error["type"] for error in cause.errors()} == problems
    assert {error["input"] for error in cause.errors()} == {None}
