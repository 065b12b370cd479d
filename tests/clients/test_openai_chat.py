"""The official OpenAI client with strict validation: every mode of chat, complete and streamed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.conftest import WAYS, Caller, tokens_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

CREATE = "chat.completions.create"
MESSAGES: list[Any] = [{"role": "user", "content": "Hi €"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Zürich"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": "Tells.", "parameters": PARAMETERS, "strict": True}}
    for name in ("weather", "forecast")
]
ONE = {"tools": TOOLS, "parallel_tool_calls": False, "max_tokens": 300}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
NAMED_SCHEMA = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA, "strict": True}}
CBS = {"pairs": {"pair": 1.0}, "beam_width": 2, "successors": 2, "chunk_length": 5}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "x"}'}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "roles and parts": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "x", "name": "Ann"},
            {"role": "assistant", "content": "y"},
            *MESSAGES,
        ]
    },
    "n": {"n": 2},
    "limits": {"max_tokens": 50, "max_completion_tokens": 5},
    "stop": {"stop": ["a", "e", " "], "max_tokens": 60},
    "greedy": {"temperature": 0},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 4, "n": 2},
    "text": {"response_format": {"type": "text"}},
    "json_object": {"response_format": {"type": "json_object"}, "max_tokens": 60, "logprobs": True},
    "json_schema": {"response_format": NAMED_SCHEMA, "max_tokens": 120},
    "guided_regex": {"extra_body": {"guided_regex": "[ab]{4}€"}, "max_tokens": 40},
    "tools, auto": {"tools": TOOLS, "tool_choice": "auto"},
    "tools, none": {"tools": TOOLS, "tool_choice": "none"},
    "tools, required": {**ONE, "tool_choice": "required"},
    "tools, named": {**ONE, "tool_choice": named("weather"), "logprobs": True},
    "tools, cut off": {**ONE, "tool_choice": "required", "max_tokens": 25},
    "tools, returned": {
        "messages": [
            *MESSAGES,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
        ],
        "tools": TOOLS,
    },
    "continued": {
        "messages": [*MESSAGES, {"role": "assistant", "content": "As I said "}],
        "extra_body": {"continue_final_message": True, "add_generation_prompt": False},
    },
    "token ids": {"extra_body": {"return_token_ids": True}},
    "cannot change the answer": {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
}


def called(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]


class Assembled:
    """A choice, assembled from its chunks as clients do it."""

    def __init__(self) -> None:
        self.content, self.ends, self.tokens, self.roles = "", [], [], []
        self.calls: defaultdict[int, list[Any]] = defaultdict(list)

    def add(self, choice: Any) -> None:
        assert not self.ends, "the end comes last"
        self.content += choice.delta.content or ""
        self.roles += [choice.delta.role] if choice.delta.role else []
        self.ends += [choice.finish_reason] if choice.finish_reason else []
        self.tokens += choice.logprobs.content if choice.logprobs else []
        for call in choice.delta.tool_calls or ():
            self.calls[call.index].append(call)

    def check(self, choice: Any) -> None:
        assert self.roles == ["assistant"]
        assert self.content == (choice.message.content or "")
        assert self.ends == [choice.finish_reason]
        expected = choice.logprobs.content if choice.logprobs else []
        assert [(t.token, t.bytes) for t in self.tokens] == [(t.token, t.bytes) for t in expected]
        assert [t.logprob for t in self.tokens] == pytest.approx([t.logprob for t in expected], abs=1e-3)
        whole = choice.message.tool_calls or []
        assert list(self.calls) == list(range(len(whole)))
        for index, deltas in self.calls.items():
            first, *others = deltas
            assert (bool(first.id), first.type) == (True, "function")
            assert first.function.name == whole[index].function.name
            assert all((d.id, d.type, d.function.name) == (None, None, None) for d in others), "said once"
            assert "".join(d.function.arguments or "" for d in deltas) == whole[index].function.arguments


@WAYS
@pytest.mark.parametrize("case", CASES)
async def test_every_mode_whole_and_streamed(call: Caller, model: str, case: str) -> None:
    ask = {"model": model, "messages": MESSAGES, "seed": 4, "max_tokens": 12, **CASES[case]}
    answer = await call(CREATE, **ask)
    assert (answer.object, answer.id[:9], answer.model) == ("chat.completion", "chatcmpl-", model)
    assert [choice.index for choice in answer.choices] == list(range(ask.get("n", 1)))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert (answer.model_extra.get("guidance") is not None) == (model != "plain")
    chunks = await call(CREATE, **ask, stream=True, stream_options={"include_usage": True})
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    *others, last = chunks
    assert (last.choices, tokens_of(last)) == ([], tokens_of(answer))
    assert all(chunk.usage is None for chunk in others)
    found = [Assembled() for _ in answer.choices]
    for chunk in others:
        for choice in chunk.choices:
            found[choice.index].add(choice)
    for assembled, choice in zip(found, answer.choices, strict=True):
        assembled.check(choice)


def _cut_short(choice: Any) -> None:
    assert (choice.finish_reason, len(choice.logprobs.content)) == ("length", 5)


def _alternatives(choice: Any) -> None:
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 3
        assert max(top.logprob for top in token.top_logprobs) == token.top_logprobs[0].logprob >= token.logprob


def _object(choice: Any) -> None:
    assert isinstance(json.loads(choice.message.content), dict)


def _schema(choice: Any) -> None:
    assert json.loads(choice.message.content)["a"] in (1, 2)


def _weather(choice: Any) -> None:
    [(name, arguments)] = called(choice.message)
    assert name == "weather"
    assert (arguments["city"] in ("Bern", "Zürich"), arguments["days"] in (1, 2)) == (True, True)
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)


def _any_tool(choice: Any) -> None:
    [(name, arguments)] = called(choice.message)
    assert name in ("weather", "forecast")
    assert set(arguments) == {"city", "days"}


def _no_tool(choice: Any) -> None:
    assert choice.message.tool_calls is None
    assert choice.finish_reason in ("stop", "length")


CHECKED: dict[str, tuple[dict[str, Any], Callable[[Any], None]]] = {
    "max_completion_tokens wins": ({"max_tokens": 50, "max_completion_tokens": 5, "logprobs": True}, _cut_short),
    "top_logprobs": ({"logprobs": True, "top_logprobs": 3}, _alternatives),
    "json_schema": ({"response_format": NAMED_SCHEMA, "max_tokens": 200}, _schema),
    "structured search": (
        {"response_format": NAMED_SCHEMA, "max_tokens": 200, "extra_body": {"guidance": CBS}},
        _schema,
    ),
    "named": ({**ONE, "tool_choice": named("weather")}, _weather),
    "named, searched": ({**ONE, "tool_choice": named("weather"), "extra_body": {"guidance": CBS}}, _weather),
    "required": ({**ONE, "tool_choice": "required"}, _any_tool),
    "none": ({**ONE, "tool_choice": "none", "max_tokens": 5}, _no_tool),
}


@pytest.mark.parametrize("case", CHECKED)
async def test_what_a_mode_tells(call: Caller, case: str) -> None:
    asked, check = CHECKED[case]
    ask = {"model": "plain", "messages": MESSAGES, "seed": 4, "max_tokens": 12, **asked}
    [choice] = (await call(CREATE, **ask)).choices
    check(choice)


async def test_a_continued_message_is_what_the_two_texts_are(call: Caller) -> None:
    """The last turn stays open: the model continues it with what it would have written after these words."""
    ask = {"model": "plain", "messages": MESSAGES, "temperature": 0, "max_tokens": 30}
    [first] = (await call(CREATE, **ask, extra_body={"allowed_token_ids": list(range(65, 91))})).choices
    begun = [*MESSAGES, {"role": "assistant", "content": first.message.content[:10]}]
    ask |= {"messages": begun, "max_tokens": 20}
    extra = {"continue_final_message": True, "allowed_token_ids": list(range(65, 91))}
    [rest] = (await call(CREATE, **ask, extra_body=extra)).choices
    assert begun[-1]["content"] + rest.message.content == first.message.content
