"""LangChain's `ChatOpenAI`: invoke, stream, batch, structured output and tools; synchronous and asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import openai
import pytest
import pytest_asyncio
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field

from tests.clients.conftest import CONTEXT, KEY
from tests.tiny import byte_tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="session")

GUIDANCE = {"guidance": {"pairs": {"pair": 1.0}, "beam_width": 2, "successors": 2, "chunk_length": 8}}
MODELS = pytest.mark.parametrize("model", ["plain", "cbs"])


class Pet(BaseModel):
    """A pet."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["cat", "dog"]
    age: int = Field(ge=0, le=30)


@tool
def weather(city: Literal["Bern", "Zürich"]) -> str:
    """Tells the weather."""
    return f"sun in {city}"


Chat = Callable[..., ChatOpenAI]


@pytest_asyncio.fixture(loop_scope="session")
async def own(url: str) -> AsyncIterator[dict[str, Any]]:
    """Settings of every client, with our HTTP clients, as LangChain never closes connections that it opened itself."""
    async with openai.DefaultAsyncHttpxClient() as later:
        with openai.DefaultHttpxClient() as now:
            yield {"base_url": url, "api_key": KEY, "max_retries": 0, "http_client": now, "http_async_client": later}


@pytest.fixture
def chat(own: dict[str, Any]) -> Chat:
    def make(model: str = "plain", **settings: Any) -> ChatOpenAI:
        return ChatOpenAI(model=model, **{"temperature": 0.8, "max_tokens": 30, "seed": 3} | own | settings)

    return make


@MODELS
async def test_invoke_and_stream_say_the_same(chat: Chat, model: str) -> None:
    talk = chat(model, stream_usage=True)
    messages = [SystemMessage("Be brief."), HumanMessage("Hi €")]
    said = await talk.ainvoke(messages)
    assert said.content == (await asyncio.to_thread(talk.invoke, messages)).content
    assert said.usage_metadata
    assert said.usage_metadata["output_tokens"] >= 1
    assert said.response_metadata["finish_reason"] in ("stop", "length")
    for chunks in (
        [chunk async for chunk in talk.astream(messages)],
        await asyncio.to_thread(lambda: list(talk.stream(messages))),
    ):
        whole = sum(chunks[1:], chunks[0])
        assert isinstance(whole, AIMessageChunk)
        assert whole.content == said.content
        assert whole.usage_metadata
        assert whole.usage_metadata["total_tokens"] == said.usage_metadata["total_tokens"]
        assert whole.response_metadata["finish_reason"] == said.response_metadata["finish_reason"]


async def test_what_only_we_know_goes_through_extra_body(chat: Chat) -> None:
    said = await chat(extra_body=GUIDANCE).ainvoke("Hi")
    plain = await chat().ainvoke("Hi")
    searched = await chat("cbs", extra_body=GUIDANCE).ainvoke("Hi")
    assert said.content == searched.content != plain.content


async def test_a_batch_is_each_alone(chat: Chat) -> None:
    talk = chat("cbs")
    said = await talk.abatch(["a", "b", "c"])
    assert [one.content for one in said] == [(await talk.ainvoke(text)).content for text in "abc"]


async def test_log_probabilities(chat: Chat) -> None:
    said = await chat(logprobs=True, top_logprobs=2).ainvoke("Hi")
    told = said.response_metadata["logprobs"]["content"]
    assert said.usage_metadata
    assert len(told) == said.usage_metadata["output_tokens"]
    assert all(len(token["top_logprobs"]) == 2 for token in told)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # LangChain's own, of the parsed field
@MODELS
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_structured_output(chat: Chat, model: str, method: Any) -> None:
    structured = chat(model, max_tokens=400).with_structured_output(Pet, method=method, strict=True)
    pet = await structured.ainvoke("A pet?")
    assert isinstance(pet, Pet)
    assert await asyncio.to_thread(structured.invoke, "A pet?") == pet
    assert [part async for part in structured.astream("A pet?")][-1] == pet


@MODELS
async def test_any_json(chat: Chat, model: str) -> None:
    [brace] = byte_tokenizer().encode("}")
    hasty = chat(model, logit_bias={brace: 100})
    assert await hasty.with_structured_output(None, method="json_mode").ainvoke("Anything?") == {}


@MODELS
async def test_tools_are_called_streamed_and_answered(chat: Chat, model: str) -> None:
    able = chat(model, max_tokens=300).bind_tools([weather], tool_choice="weather", strict=True)
    said = await able.ainvoke("How is it?")
    assert isinstance(said, AIMessage)
    [call] = said.tool_calls
    assert (call["name"], set(call["args"])) == ("weather", {"city"})
    assert not said.invalid_tool_calls
    chunks = [chunk async for chunk in able.astream("How is it?")]
    whole = sum(chunks[1:], chunks[0])
    assert [(c["name"], c["args"]) for c in whole.tool_calls] == [("weather", call["args"])]
    result = await weather.ainvoke(call)
    assert isinstance(result, ToolMessage)
    assert result.content == f"sun in {call['args']['city']}"
    free = chat(model).bind_tools([weather])
    assert isinstance((await free.ainvoke([HumanMessage("How is it?"), said, result])).content, str)


@pytest.mark.parametrize("choice", ["any", "auto", "none"])
async def test_the_words_for_a_choice_of_tools(chat: Chat, choice: str) -> None:
    said = await chat(max_tokens=300).bind_tools([weather], tool_choice=choice, strict=True).ainvoke("How is it?")
    assert isinstance(said, AIMessage)
    assert bool(said.tool_calls) == (choice == "any")


@MODELS
async def test_legacy_completions(own: dict[str, Any], model: str) -> None:
    """The legacy `OpenAI` class: its streamed chunks add up to the text of `ainvoke`."""
    write = OpenAI(model=model, max_tokens=20, seed=5, **own)
    text = await write.ainvoke("Once upon")
    assert text
    assert "".join([chunk async for chunk in write.astream("Once upon")]) == text
    assert await write.abatch(["Once upon", "x"]) == [text, await write.ainvoke("x")]


async def test_errors_are_the_official_clients(chat: Chat) -> None:
    with pytest.raises(openai.NotFoundError):
        await chat("nobody").ainvoke("Hi")
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        await chat().ainvoke("x" * CONTEXT)
