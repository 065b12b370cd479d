"""Conversations go on with exactly what the server said before, as official helpers and LangChain hand it over."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, FunctionMessage, HumanMessage, SystemMessage, ToolMessage

from tests.clients.conftest import Caller
from tests.clients.test_langchain import Chat, weather
from tests.clients.test_langchain import chat as chat  # noqa: PLC0414  (a fixture)
from tests.clients.test_langchain import own as own  # noqa: PLC0414  (a fixture)
from tests.clients.test_openai_chat import CREATE, MESSAGES, ONE
from tests.clients.test_openai_chat_helpers import Pet, Weather, streamed_by_helper
from tests.tiny import END_THINK

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),  # the clients' own, of the parsed field
]

PARSE = "chat.completions.parse"
CALLING: dict[str, Any] = {"tools": [openai.pydantic_function_tool(Weather)], "tool_choice": "required", **ONE}
CALLING |= {"tools": [openai.pydantic_function_tool(Weather)]}
CUT = len("}\n</tool_call>") + 5  # tokens that a call lacks if it is cut off inside of its arguments


SHORT_THOUGHTS = {str(END_THINK): 4}  # some are empty


def thinks(model: str) -> bool:
    """Whether it is a reasoning model."""
    return model.startswith("thinking")


def accumulated(chunks: list[Any]) -> dict[str, Any]:
    """The message that a client without helpers makes of a stream, with everything that the deltas carried."""
    message: dict[str, Any] = {}
    for delta in (choice.delta.model_dump(exclude_none=True) for chunk in chunks for choice in chunk.choices):
        for key, value in delta.items():
            if key != "tool_calls":
                message[key] = message.get(key, "") + value if key in ("content", "reasoning_content") else value
        for part in delta.get("tool_calls", []):
            calls = message.setdefault("tool_calls", [])
            if part["index"] == len(calls):
                calls.append(part)
            else:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return message


def result(message: Any) -> dict[str, Any]:
    """A tool's answer to the first call of a message, which may be an object or a dictionary."""
    call = message["tool_calls"][0]["id"] if isinstance(message, dict) else message.tool_calls[0].id
    return {"role": "tool", "tool_call_id": call, "content": [{"type": "text", "text": "sun"}]}


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        *(("async", "plain"), ("sync", "cbs"), ("async", "best")),
        *(("sync", "thinking-plain"), ("async", "thinking-cbs"), ("async", "thinking-best")),
    ],
    indirect=["kind"],
)
async def test_five_turns_with_what_the_official_helpers_hand_over(
    call: Caller, kind: str, url: str, model: str
) -> None:
    ask = {"model": model, "seed": 1, "max_tokens": 300, "logit_bias": SHORT_THOUGHTS}
    said: list[Any] = [{"role": "system", "content": "Be brief."}, *MESSAGES]

    parsed = (await call(PARSE, **ask, messages=said, response_format=Pet)).choices[0].message
    assert isinstance(parsed.parsed, Pet)
    said += [parsed, {"role": "user", "content": "And the weather?"}]

    called = (await call(PARSE, **ask | CALLING, messages=said)).choices[0].message
    said += [called, result(called)]

    _, final = await streamed_by_helper(kind, url, **ask | CALLING, messages=said)
    streamed = final.choices[0].message.model_dump()
    thoughts = [message.model_extra.get("reasoning_content") for message in (parsed, called)]
    thoughts.append(streamed.get("reasoning_content"))
    said += [streamed, result(streamed)]

    raw = accumulated(await call(CREATE, **ask | CALLING, messages=said, stream=True))
    assert raw["tool_calls"][0]["index"] == 0
    thoughts.append(raw.get("reasoning_content"))
    assert any(thoughts) == thinks(model)
    said += [raw, result(raw)]

    whole = (await call(CREATE, **ask | CALLING, messages=said)).usage.completion_tokens
    cut = (await call(CREATE, **ask | CALLING | {"max_tokens": whole - CUT}, messages=said)).choices[0].message
    said.append(cut)
    if model.endswith("plain"):  # a shorter search is another one
        with pytest.raises(json.JSONDecodeError):
            json.loads(cut.tool_calls[0].function.arguments)
        said.append(result(cut))

    last = await call(CREATE, **ask | {"max_tokens": 5}, messages=said)
    assert isinstance(last.choices[0].message.content, str)


@pytest.mark.parametrize("model", ["plain", "cbs", "thinking-plain", "thinking-cbs"])
async def test_turns_with_what_langchain_hands_over(chat: Chat, model: str) -> None:
    talk = chat(model, max_tokens=300, logit_bias=SHORT_THOUGHTS, seed=1)
    able = talk.bind_tools([weather], tool_choice="weather", strict=True)
    said: list[Any] = [
        SystemMessage("Be brief."),
        SystemMessage("And kind."),
        HumanMessage([{"type": "text", "text": "Hi"}]),
    ]

    called = await able.ainvoke(said)
    said += [called, await weather.ainvoke(called.tool_calls[0]), HumanMessage("Again?")]

    chunks = [chunk async for chunk in able.astream(said)]
    streamed = sum(chunks[1:], chunks[0])
    said += [streamed, ToolMessage("sun", tool_call_id=streamed.tool_calls[0]["id"])]

    whole = (await able.ainvoke(said)).usage_metadata
    assert whole
    cut = await able.bind(max_tokens=whole["output_tokens"] - CUT).ainvoke(said)
    said.append(cut)
    if model.endswith("plain"):  # a shorter search is another one
        said.append(ToolMessage("no", tool_call_id=cut.invalid_tool_calls[0]["id"]))

    thinking = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Well", "annotations": []}]
    old = {"function_call": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    said += [AIMessage(thinking), AIMessage("", additional_kwargs=old), FunctionMessage("sun", name="weather")]
    said += [AIMessage([]), HumanMessage("Bye")]
    assert isinstance((await talk.bind(max_tokens=5).ainvoke(said)).content, str)
