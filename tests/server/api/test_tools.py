"""Tools over HTTP: the template's input, and the calls parsed from answers, complete and streamed, guided and plain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from server.app import create_app
from server.engine_host import EngineHost
from tests.fakes import EOS, FakeLargeModel, fake_engine
from tests.server.conftest import Connect, uvicorn_server
from tests.server.fake_engine import FakeEngine
from w2s_core.structured.tool_formats import HERMES, LLAMA3_JSON, MISTRAL, ToolFormat
from w2s_core.types import ChatPrompt, Tokens

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": PARAMETERS}}
NOW = {"type": "function", "function": {"name": "now"}}
MESSAGES = [{"role": "user", "content": "Hi"}]
CALL = '{"name": "weather", "arguments": {"city": "Zürich"}}'
ANSWER = f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n" + '{"name": "now"}\n</tool_call>'


def saying(text: str, form: ToolFormat | None = HERMES) -> FakeLargeModel:
    """A fake model that answers with exactly this text."""
    data = text.encode()

    def distribution(prompt: Tokens, answer: Tokens) -> dict[int, float]:
        return {data[len(answer)] if len(answer) < len(data) else EOS: 1.0}

    large = FakeLargeModel(distribution, context_length=4000)
    large.tool_format = form.name if form else None
    return large


async def ask(connect: Connect, large: FakeLargeModel, **body: Any) -> dict[str, Any]:
    client = await connect(fake_engine(large))
    asked = {"model": "plain", "messages": MESSAGES, "tools": [TOOL, NOW], **body}
    response = await client.post("/v1/chat/completions", json=asked)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["choices"][0]
    return found


def called(message: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message["tool_calls"]]


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_calls_are_read_out_of_an_answer(connect: Connect, model: str) -> None:
    choice = await ask(connect, saying(ANSWER), model=model)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    assert called(choice["message"]) == [("weather", {"city": "Zürich"}), ("now", {})]
    ids = [call["id"] for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 2
    assert all(id_.startswith("call_") for id_ in ids)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (LLAMA3_JSON, '{"name": "weather", "parameters": {"city": "Zürich"}}'),
        (MISTRAL, f"[TOOL_CALLS][{CALL}]"),
        (HERMES, f"<tool_call>{CALL}"),
    ],
)
async def test_every_format(connect: Connect, form: ToolFormat, text: str) -> None:
    choice = await ask(connect, saying(text, form))
    assert choice["message"]["content"] is None
    assert called(choice["message"]) == [("weather", {"city": "Zürich"})]
    [call] = choice["message"]["tool_calls"]
    assert len(call["id"]) == (9 if form is MISTRAL else 29), "Mistral's template takes ids of nine letters only"


async def test_an_answer_without_calls_is_as_ever(connect: Connect) -> None:
    choice = await ask(connect, saying("Hello {} <tool"))
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello {} <tool", "stop")
    assert "tool_calls" not in choice["message"]


async def test_a_call_that_is_cut_off_stays_text(connect: Connect) -> None:
    choice = await ask(connect, saying(ANSWER), max_tokens=40)
    assert choice["message"]["content"] == ANSWER[:40]
    assert choice["finish_reason"] == "length"


async def test_one_call_at_most(connect: Connect) -> None:
    choice = await ask(connect, saying(ANSWER), parallel_tool_calls=False)
    assert called(choice["message"]) == [("weather", {"city": "Zürich"})]


async def test_without_a_choice_of_tools_text_stays_text(connect: Connect) -> None:
    choice = await ask(connect, saying(ANSWER), tool_choice="none")
    assert choice["message"]["content"] == ANSWER


async def test_the_template_is_told_of_the_tools(connect: Connect) -> None:
    seen: list[ChatPrompt] = []
    large = saying("x")
    encode = large.encode
    large.encode = lambda prompt: (seen.append(prompt), encode(prompt))[1]  # type: ignore[method-assign,func-returns-value,arg-type]
    await ask(connect, large)
    now = {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}
    assert seen[0].tools == (TOOL, {"type": "function", "function": now})
    await ask(connect, large, tool_choice="none")
    assert seen[1].tools == ()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "retrieval", "function": {"name": "x"}}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [NOW, NOW]}, "tools.1.function.name"),
        ({"tools": [NOW], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice.function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice.function.name"),
    ],
)
async def test_what_is_refused(connect: Connect, body: dict[str, Any], param: str) -> None:
    client = await connect(FakeEngine())
    response = await client.post("/v1/chat/completions", json={"model": "plain", "messages": MESSAGES, **body})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


async def test_a_model_whose_format_is_unknown_takes_no_tools(connect: Connect) -> None:
    client = await connect(fake_engine(saying("x", None)))
    body = {"model": "plain", "messages": MESSAGES, "tools": [NOW]}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools"
    assert (await client.post("/v1/chat/completions", json={**body, "model": "nobody"})).status_code == 404


@pytest.fixture
async def strict() -> AsyncIterator[openai.AsyncOpenAI]:
    ready = asyncio.Event()
    host = EngineHost(lambda: fake_engine(saying(ANSWER)), on_ready=lambda _: ready.set())
    async with uvicorn_server(create_app(host)) as (base, _):
        await ready.wait()
        client = openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="x", max_retries=0, _strict_response_validation=True)
        async with client:
            yield client


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_the_official_client_reads_the_same_streamed_and_not(strict: openai.AsyncOpenAI, model: str) -> None:
    ask: dict[str, Any] = {"model": model, "messages": MESSAGES, "tools": [TOOL, NOW], "logprobs": True}
    [choice] = (await strict.chat.completions.create(**ask)).choices
    deltas = []
    tokens = []
    ends = []
    async for chunk in await strict.chat.completions.create(**ask, stream=True):
        for streamed in chunk.choices:
            deltas.append(streamed.delta)
            tokens += streamed.logprobs.content if streamed.logprobs else []
            ends.append(streamed.finish_reason)
    assert "".join(delta.content or "" for delta in deltas) == choice.message.content
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert [(call.index, bool(call.id), call.function.name) for call in calls] == [
        (0, True, "weather"),
        (0, False, None),
        (1, True, "now"),
        (1, False, None),
    ]
    arguments = ["".join(c.function.arguments for c in calls if c.index == index) for index in (0, 1)]
    assert arguments == [call.function.arguments for call in choice.message.tool_calls]
    assert [end for end in ends if end] == [choice.finish_reason] == ["tool_calls"]
    assert b"".join(bytes(token.bytes or ()) for token in tokens) == ANSWER.encode()
    assert tokens == choice.logprobs.content


async def test_the_official_client_sends_its_calls_back(strict: openai.AsyncOpenAI) -> None:
    first = await strict.chat.completions.create(model="plain", messages=MESSAGES, tools=[TOOL, NOW])
    said = first.choices[0].message
    assert said.tool_calls
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sun"} for call in said.tool_calls]
    with pytest.raises(openai.BadRequestError, match="knows no tools"):  # the fake template's own words
        await strict.chat.completions.create(model="plain", messages=[*MESSAGES, said, *results], tools=[TOOL, NOW])


async def test_special_tokens_show_where_the_format_needs_them(connect: Connect) -> None:
    class Hiding:
        """A tokenizer whose decoding leaves out the format's opening."""

        def encode(self, text: str, *, special_tokens: bool) -> Tokens:
            return (1,)

        def decode(self, tokens: Tokens) -> str:
            return ""

    seen: list[bool] = []
    large = saying("x", MISTRAL)
    large.tokenizer = Hiding()
    check = large.check
    large.check = lambda sampling: (seen.append(sampling.skip_special_tokens), check(sampling))[1]  # type: ignore[method-assign,func-returns-value]
    await ask(connect, large)
    await ask(connect, saying("x", MISTRAL))
    assert seen == [False]
