"""The official OpenAI client's helpers for chat: parsing into models, its streaming events, and calls of tools."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.clients.conftest import KEY, WAYS, Caller
from tests.clients.test_openai_chat import CREATE, MESSAGES, ONE, named

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Pet(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["cat", "dog"]
    age: int = Field(ge=0, le=30)


class Weather(BaseModel):
    """Tells the weather."""

    city: Literal["Bern", "Zürich"]


@WAYS
async def test_parsing_into_a_model_of_pydantics(call: Caller, model: str) -> None:
    answer = await call(
        "chat.completions.parse", model=model, messages=MESSAGES, response_format=Pet, max_tokens=300, seed=1
    )
    assert isinstance(answer.choices[0].message.parsed, Pet)


async def test_parsing_a_call(call: Caller) -> None:
    answer = await call(
        "chat.completions.parse",
        model="plain",
        messages=MESSAGES,
        tools=[openai.pydantic_function_tool(Weather)],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=300,
    )
    [made] = answer.choices[0].message.tool_calls
    assert isinstance(made.function.parsed_arguments, Weather)


async def streamed_by_helper(kind: str, url: str, **ask: Any) -> tuple[list[Any], Any]:
    """The events of `client.chat.completions.stream`, and the completion that the helper assembled."""
    settings: Any = {"base_url": url, "api_key": KEY, "max_retries": 0, "_strict_response_validation": True}

    def talk() -> tuple[list[Any], Any]:
        with openai.OpenAI(**settings) as client, client.chat.completions.stream(**ask) as stream:
            return list(stream), stream.get_final_completion()

    if kind == "sync":
        return await asyncio.to_thread(talk)
    async with openai.AsyncOpenAI(**settings) as client, client.chat.completions.stream(**ask) as stream:
        return [event async for event in stream], await stream.get_final_completion()


@WAYS
async def test_a_strict_schema_that_leaves_anything_open_is_closed(call: Caller, model: str) -> None:
    """OpenAI answers 400 to it; see docs/api.md."""
    schema = {"type": "object", "properties": {"result": {"enum": [1, 2]}}}
    named = {"name": "x", "strict": True, "schema": schema}
    ask = {"model": model, "messages": MESSAGES, "max_tokens": 300, "seed": 1}
    answer = await call(CREATE, **ask, response_format={"type": "json_schema", "json_schema": named})
    assert json.loads(answer.choices[0].message.content)["result"] in (1, 2)
    assert len(json.loads(answer.choices[0].message.content)) == 1


@WAYS
async def test_the_streaming_helper(kind: str, url: str, call: Caller, model: str) -> None:
    ask = {"model": model, "messages": MESSAGES, "seed": 1, "max_tokens": 300, "response_format": Pet, "logprobs": True}
    events, final = await streamed_by_helper(kind, url, **ask)
    whole = await call("chat.completions.parse", **ask)
    assert final.choices[0].message.parsed == whole.choices[0].message.parsed
    assert [event.parsed for event in events if event.type == "content.done"] == [final.choices[0].message.parsed]
    assert "".join(event.delta for event in events if event.type == "content.delta") == final.choices[0].message.content


@WAYS
async def test_the_streaming_helper_with_tools(kind: str, url: str, model: str) -> None:
    ask = {"model": model, "messages": MESSAGES, "tool_choice": "required", "seed": 2, **ONE}
    events, final = await streamed_by_helper(kind, url, **ask | {"tools": [openai.pydantic_function_tool(Weather)]})
    [made] = final.choices[0].message.tool_calls
    assert isinstance(made.function.parsed_arguments, Weather)
    told = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert "".join(event.arguments_delta for event in told) == made.function.arguments
    assert [event.name for event in events if event.type == "tool_calls.function.arguments.done"] == ["Weather"]


@WAYS
async def test_arguments_of_a_forced_call_are_streamed_as_they_are_written(call: Caller, model: str) -> None:
    ask = {"model": model, "messages": MESSAGES, "seed": 4, **ONE, "tool_choice": named("weather"), "stream": True}
    chunks = await call(CREATE, **ask)
    calls = [c for chunk in chunks for choice in chunk.choices for c in choice.delta.tool_calls or ()]
    assert calls[0].function.name == "weather"
    assert len(calls) > (2 if model == "plain" else 1), "a search tells what it agrees on"
    begun = ""
    for part in calls[:-1]:
        begun += part.function.arguments
        with pytest.raises(json.JSONDecodeError):
            json.loads(begun)
    assert json.loads(begun + calls[-1].function.arguments)["city"] in ("Bern", "Zürich")


async def test_a_forced_call_that_is_cut_off_is_told_so(call: Caller) -> None:
    """As with OpenAI: the arguments so far, and finish_reason length."""
    ask = {"model": "plain", "messages": MESSAGES, "seed": 4, **ONE, "tool_choice": named("weather")}
    whole = await call(CREATE, **ask)
    closing = len("}\n</tool_call>")  # a token each
    [cut] = (await call(CREATE, **ask | {"max_tokens": whole.usage.completion_tokens - closing - 5})).choices
    [made], [full] = cut.message.tool_calls, whole.choices[0].message.tool_calls
    assert (cut.finish_reason, cut.message.content, made.function.name) == ("length", None, "weather")
    assert full.function.arguments.startswith(made.function.arguments)
    with pytest.raises(json.JSONDecodeError):
        json.loads(made.function.arguments)


async def test_a_conversation_about_tools_goes_on(call: Caller) -> None:
    """The client sends the answer's message back unchanged, followed by the result of the call."""
    ask = {"model": "plain", "messages": MESSAGES, "seed": 3, **ONE}
    first = await call(CREATE, **ask, tool_choice="required")
    said = first.choices[0].message
    result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "sun"}
    ask |= {"messages": [*MESSAGES, said, result], "max_tokens": 5}
    second = await call(CREATE, **ask, tool_choice="none")
    assert second.usage.prompt_tokens > len(said.tool_calls[0].function.arguments)
    assert second.choices[0].message.content is not None
