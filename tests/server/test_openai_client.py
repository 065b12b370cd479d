"""The official OpenAI client, strict, sync and async, streaming and not, with the real engine over fake models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest

from server.app import create_app
from server.engine_host import EngineHost
from server.settings.config import ServerConfig
from tests.fakes import FakeLargeModel, fake_engine, letters
from tests.server.conftest import uvicorn_server

KEY = "sesame"
MESSAGES = [{"role": "user", "content": "Hi"}]
GUIDANCE = {"guidance": {"pairs": {"positive": 1.0}, "beam_width": 2, "successors": 3, "chunk_length": 4}}


@pytest.fixture
async def url() -> AsyncIterator[str]:
    ready = asyncio.Event()
    engine = fake_engine(FakeLargeModel(letters("ab ", eos=0.02)))
    host = EngineHost(lambda: engine, on_ready=lambda _: ready.set())
    async with uvicorn_server(create_app(host, ServerConfig(api_keys=(KEY,)))) as (base, _):
        await ready.wait()
        yield f"{base}/v1"


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=url, api_key=KEY, max_retries=0, _strict_response_validation=True
    ) as connected:
        yield connected


async def test_models(client: openai.AsyncOpenAI) -> None:
    listed = await client.models.list()
    assert [model.id for model in listed.data] == ["plain", "guided"]
    assert (await client.models.retrieve("guided")).id == "guided"


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_chat_says_the_same_streamed_and_not(client: openai.AsyncOpenAI, model: str) -> None:
    ask = {"model": model, "messages": MESSAGES, "seed": 7, "max_tokens": 40}
    answer = await client.chat.completions.create(**ask)
    stream = await client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == answer.choices[0].message.content
    assert text
    assert chunks[-1].usage == answer.usage
    finals = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert finals == [answer.choices[0].finish_reason]


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_completions_say_the_same_streamed_and_not(client: openai.AsyncOpenAI, url: str, model: str) -> None:
    ask = {"model": model, "prompt": ["x", "y"], "n": 2, "seed": 7, "max_tokens": 40}
    answer = await client.completions.create(**ask)
    texts = [choice.text for choice in answer.choices]
    assert len(texts) == 4
    # Not strict: the client's own type has no null finish_reason, which OpenAI itself streams.
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as lenient:
        streamed = [""] * 4
        async for chunk in await lenient.completions.create(**ask, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.text
    assert streamed == texts


async def test_guidance_goes_through_extra_body_and_comes_back(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="plain", messages=MESSAGES, max_tokens=12, seed=1, extra_body=GUIDANCE
    )
    report = answer.model_extra["guidance"]
    assert (report["method"], report["beam_width"], report["successors"], report["chunk_length"]) == ("cbs", 2, 3, 4)
    assert report["chunks"] >= 1
    assert set(answer.choices[0].model_extra["guidance"]) == {"score", "scores"}


async def test_a_search_of_one_is_plain_sampling(client: openai.AsyncOpenAI) -> None:
    """W = K = 1 through HTTP: the same seed gives the same text, guided or not."""
    one = {"guidance": {"pairs": {"positive": 1.0}, "beam_width": 1, "successors": 1, "chunk_length": 3}}
    ask = {"model": "plain", "prompt": "x", "max_tokens": 60, "seed": 11}
    plain = await client.completions.create(**ask)
    guided = await client.completions.create(**ask, extra_body=one)
    assert guided.choices[0].text == plain.choices[0].text
    assert plain.choices[0].text


@pytest.mark.parametrize(
    ("ask", "error", "code", "param"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 3}, openai.BadRequestError, None, "temperature"),
        ({"extra_body": {"guidance": {"beam_width": 0}}}, openai.BadRequestError, None, "guidance.beam_width"),
        ({"extra_body": {"guidance": {"pairs": {"x": 1}}}}, openai.BadRequestError, None, "guidance.pairs"),
        ({"max_tokens": 5000}, openai.BadRequestError, "context_length_exceeded", "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_are_the_clients_own(
    client: openai.AsyncOpenAI,
    ask: dict[str, object],
    error: type[openai.APIStatusError],
    code: str,
    param: str,
    stream: bool,
) -> None:
    with pytest.raises(error) as raised:
        await client.chat.completions.create(**{"model": "plain", "messages": MESSAGES, "stream": stream, **ask})
    assert raised.value.code == code
    assert param in str(raised.value.param)
    assert raised.value.request_id


async def test_a_wrong_key(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as raised:
            await stranger.models.list()
    assert raised.value.code == "invalid_api_key"


async def test_the_synchronous_client(url: str) -> None:
    def talk() -> tuple[str | None, str]:
        with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, _strict_response_validation=True) as client:
            ask = {"model": "guided", "messages": MESSAGES, "seed": 3, "max_tokens": 30}
            answer = client.chat.completions.create(**ask)
            stream = client.chat.completions.create(**ask, stream=True)
            text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
            return answer.choices[0].message.content, text

    whole, streamed = await asyncio.to_thread(talk)
    assert whole == streamed
    assert whole
