"""Log-probabilities through HTTP: the real engine over a fake model that writes characters byte by byte."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from server.api.schemas.logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from server.app import create_app
from server.engine_host import EngineHost
from tests.fakes import EOS, FakeLargeModel, fake_engine
from tests.server.conftest import Connect, uvicorn_server
from w2s_core.engine.events import TokenInfo
from w2s_core.types import MIN_LOGPROB, Tokens, TokenText

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MODELS = pytest.mark.parametrize("model", ["plain", "guided"])


def byte_by_byte(prompt: Tokens, answer: Tokens) -> dict[int, float]:
    """`a`, a space, an EOS, or a character of three bytes, which sometimes is left unfinished."""
    if answer[-1:] == (0xE2,):
        return {0x82: 0.9, ord("a"): 0.1}
    if answer[-2:] == (0xE2, 0x82):
        return {0xAC: 0.95, ord("a"): 0.05}
    return {ord("a"): 0.5, ord(" "): 0.2, 0xE2: 0.28, EOS: 0.02}


@pytest.fixture
async def client(connect: Connect) -> httpx.AsyncClient:
    return await connect(fake_engine(FakeLargeModel(byte_by_byte)))


def body(path: str, **changes: Any) -> dict[str, Any]:
    prompt = {"prompt": "é!"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "x"}]}
    return {"model": "plain", "max_tokens": 30, "seed": 3, **prompt, **changes}


async def whole(client: httpx.AsyncClient, path: str, **changes: Any) -> dict[str, Any]:
    response = await client.post(path, json=body(path, **changes))
    assert response.status_code == 200, response.text
    return dict(response.json())


async def streamed(client: httpx.AsyncClient, path: str, **changes: Any) -> list[dict[str, Any]]:
    response = await client.post(path, json=body(path, stream=True, **changes))
    assert response.status_code == 200, response.text
    return [json.loads(frame.removeprefix("data: ")) for frame in response.text.split("\n\n")[:-2]]


def check_legacy(choice: dict[str, Any]) -> None:
    """Each whole token is in the text at its offset; the texts of whole tokens make up the text."""
    told, text = choice["logprobs"], choice["text"]
    assert len({len(values) for values in told.values()}) == 1
    for token, nats, top, offset in zip(*(told[key] for key in KEYS), strict=True):
        if not token.startswith(("bytes:", "<eos>")):
            assert text[offset:].startswith(token)
        if nats is not None:
            assert top[token] == nats
            assert MIN_LOGPROB <= nats <= 0
    if not any(token.startswith("bytes:") for token in told["tokens"]):
        assert "".join(t for t in told["tokens"] if t != "<eos>") == text


KEYS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


@MODELS
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("stop", [None, "a a", "€a"])
async def test_a_completions_stream_adds_up_to_the_whole(
    client: httpx.AsyncClient, model: str, seed: int, stop: str | None
) -> None:
    ask = {"model": model, "seed": seed, "stop": stop, "logprobs": 2, "return_token_ids": True}
    answer = await whole(client, COMPLETIONS, **ask)
    [choice] = answer["choices"]
    check_legacy(choice)
    chunks = [chunk["choices"][0] for chunk in await streamed(client, COMPLETIONS, **ask)]
    for key in KEYS:
        assert [v for c in chunks if c["logprobs"] for v in c["logprobs"][key]] == choice["logprobs"][key]
    assert [t for c in chunks for t in c["token_ids"]] == choice["token_ids"]
    assert "".join(c["text"] for c in chunks) == choice["text"]
    assert chunks[0]["prompt_token_ids"] == choice["prompt_token_ids"] == list("é!".encode())
    assert len(choice["token_ids"]) == len(choice["logprobs"]["tokens"]) == answer["usage"]["completion_tokens"]
    assert choice["text"] == (await whole(client, COMPLETIONS, **ask | {"logprobs": None}))["choices"][0]["text"]
    said = 0
    for chunk in chunks:  # the tokens of a chunk are those that its text is made of
        if chunk["text"]:
            offsets = chunk["logprobs"]["text_offset"]
            assert said == min(offsets)
            said += len(chunk["text"])
            assert max(offsets) < said


@MODELS
@pytest.mark.parametrize("seed", range(4))
async def test_a_chat_stream_adds_up_to_the_whole(client: httpx.AsyncClient, model: str, seed: int) -> None:
    ask = {"model": model, "seed": seed, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}
    answer = await whole(client, CHAT, **ask)
    [choice] = answer["choices"]
    content, text = choice["logprobs"]["content"], choice["message"]["content"]
    chunks = await streamed(client, CHAT, **ask)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [entry for c in choices if c["logprobs"] for entry in c["logprobs"]["content"]] == content
    assert [t for c in choices for t in c["token_ids"]] == choice["token_ids"]
    assert chunks[0]["prompt_token_ids"] == answer["prompt_token_ids"]
    told = b"".join(bytes(entry["bytes"]) for entry in content if entry["bytes"] is not None)
    assert told.decode("utf-8", "replace").rstrip("\ufffd") == text
    for entry in content:
        assert len(entry["top_logprobs"]) == 2
        assert [top["logprob"] for top in entry["top_logprobs"]] == sorted(
            (top["logprob"] for top in entry["top_logprobs"]), reverse=True
        )


@MODELS
async def test_the_token_that_ends_an_answer_is_told(client: httpx.AsyncClient, model: str) -> None:
    for seed in range(60):
        [choice] = (await whole(client, COMPLETIONS, model=model, seed=seed, logprobs=0, max_tokens=60))["choices"]
        if choice["finish_reason"] == "stop":
            assert choice["logprobs"]["tokens"][-1] == "<eos>"
            assert choice["logprobs"]["text_offset"][-1] == len(choice["text"])
            assert choice["logprobs"]["top_logprobs"][-1] == {"<eos>": pytest.approx(math.log(0.02))}
            return
    pytest.fail("no answer ended")


@MODELS
@pytest.mark.parametrize("prompt", ["é!", [0xC3, 0xA9, 33]])
async def test_echo_with_logprobs(client: httpx.AsyncClient, model: str, prompt: Any) -> None:
    ask = {"model": model, "prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 5}
    [choice] = (await whole(client, COMPLETIONS, **ask))["choices"]
    assert choice["text"].startswith("é!")
    check_legacy(choice)
    told = choice["logprobs"]
    assert told["tokens"][:3] == ["bytes:\\xc3", "bytes:\\xa9", "!"]
    assert told["text_offset"][:4] == [0, 0, 1, 2]
    assert told["token_logprobs"][0] is None
    assert told["top_logprobs"][0] is None
    assert told["token_logprobs"][1:3] == [MIN_LOGPROB, MIN_LOGPROB], "minus infinity is no JSON"
    chunks = [chunk["choices"][0] for chunk in await streamed(client, COMPLETIONS, **ask)]
    assert chunks[0]["text"] == "é!"
    for key in KEYS:
        assert [v for c in chunks if c["logprobs"] for v in c["logprobs"][key]] == told[key]


@MODELS
async def test_nothing_but_an_echo(client: httpx.AsyncClient, model: str) -> None:
    ask = {"model": model, "echo": True, "max_tokens": 0, "prompt": ["a €", "aa"], "n": 2}
    answer = await whole(client, COMPLETIONS, **ask, logprobs=2)
    assert [choice["text"] for choice in answer["choices"]] == ["a €", "a €", "aa", "aa"]
    assert answer["usage"]["completion_tokens"] == 0
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    for choice in answer["choices"]:
        check_legacy(choice)
        assert choice["logprobs"]["token_logprobs"][1] in (
            pytest.approx(math.log(0.2)),
            pytest.approx(math.log(0.5)),
        )
    plain = await whole(client, COMPLETIONS, **ask)
    assert [choice["text"] for choice in plain["choices"]] == ["a €", "a €", "aa", "aa"]
    assert plain["choices"][0]["logprobs"] is None
    chunks = [chunk["choices"][0] for chunk in await streamed(client, COMPLETIONS, **ask)]
    assert ["".join(c["text"] for c in chunks if c["index"] == i) for i in range(4)] == ["a €", "a €", "aa", "aa"]


async def test_as_lm_eval_asks(connect: Connect) -> None:
    """Lists of token ids; one generated entry behind each prompt, even when it is the EOS; greedy = the best, to the
    last bit."""
    client = await connect(fake_engine(FakeLargeModel(lambda prompt, answer: {EOS: 0.6, ord("a"): 0.4})))
    prompts = [list(b"abc"), list(b"aa"), list("€".encode())]
    ask = {"prompt": prompts, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
    answer = await whole(client, COMPLETIONS, **ask)
    for prompt, choice in zip(prompts, sorted(answer["choices"], key=lambda c: c["index"]), strict=True):
        told = choice["logprobs"]
        assert {len(told[key]) for key in KEYS} == {len(prompt) + 1}
        assert told["tokens"][-1] == "<eos>"
        assert told["token_logprobs"][-1] == max(told["top_logprobs"][-1].values())


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_prompt_logprobs_as_vllm_shapes_them(client: httpx.AsyncClient, path: str) -> None:
    asked = {"prompt": "aa"} if path == COMPLETIONS else {}
    answer = await whole(client, path, prompt_logprobs=1, max_tokens=1, **asked)
    [choice] = answer["choices"]
    assert choice["logprobs"] is None
    told = choice["prompt_logprobs"] if path == COMPLETIONS else answer["prompt_logprobs"]
    assert told[0] is None
    if path == COMPLETIONS:
        entry = {"logprob": pytest.approx(math.log(0.5)), "rank": 1, "decoded_token": "a"}
        assert told == [None, {"97": entry}]
    else:
        assert len(told) == answer["usage"]["prompt_tokens"]
        assert [str(token) in entry for token, entry in zip(b"user>x", told[1:], strict=True)] == [True] * 6


def test_shapes_of_one_token() -> None:
    piece = TokenText(None, b"\xe2\x82")
    first = TokenInfo(7, piece, 2, -math.inf, 9, ((5, TokenText("b", b"b"), -0.1), (6, TokenText("b", b"b"), -0.2)))
    legacy = completion_logprobs([first], 2, text_start=10)
    assert legacy.tokens == ["bytes:\\xe2\\x82"]
    assert legacy.top_logprobs == [{"b": -0.1, "bytes:\\xe2\\x82": MIN_LOGPROB}], "of equal texts the likelier one"
    assert legacy.text_offset == [12]
    [chat] = chat_logprobs([first], 1).content
    assert (chat.token, chat.bytes, chat.logprob) == ("\\xe2\\x82", [0xE2, 0x82], MIN_LOGPROB)
    assert [(top.token, top.bytes) for top in chat.top_logprobs] == [("b", [98])]
    [ranked] = prompt_logprobs([first], 2)
    assert ranked is not None
    assert {key: (value.rank, value.logprob) for key, value in ranked.items()} == {
        "7": (9, MIN_LOGPROB),
        "5": (1, -0.1),
        "6": (2, -0.2),
    }


@pytest.fixture
async def strict() -> AsyncIterator[openai.AsyncOpenAI]:
    ready = asyncio.Event()
    host = EngineHost(lambda: fake_engine(FakeLargeModel(byte_by_byte)), on_ready=lambda _: ready.set())
    async with uvicorn_server(create_app(host)) as (url, _):
        await ready.wait()
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
        ) as connected:
            yield connected


@MODELS
async def test_the_official_client_takes_it(strict: openai.AsyncOpenAI, model: str) -> None:
    completion = await strict.completions.create(model=model, prompt="é!", logprobs=3, seed=1, max_tokens=20)
    told = completion.choices[0].logprobs
    assert told is not None
    assert told.text_offset is not None
    assert len(told.text_offset) == completion.usage.completion_tokens
    messages: Any = [{"role": "user", "content": "x"}]
    ask: dict[str, Any] = {"model": model, "messages": messages, "logprobs": True, "top_logprobs": 3, "seed": 1}
    chat = await strict.chat.completions.create(**ask, max_tokens=20)
    stream = await strict.chat.completions.create(**ask, max_tokens=20, stream=True)
    entries = [e async for chunk in stream for c in chunk.choices if c.logprobs for e in c.logprobs.content or []]
    assert chat.choices[0].logprobs is not None
    assert entries == chat.choices[0].logprobs.content
    with pytest.raises(openai.BadRequestError) as refused:
        await strict.chat.completions.create(**ask | {"logprobs": False})
    assert refused.value.param == "top_logprobs"


async def test_token_ids_that_nobody_here_knows_are_refused_and_the_prompt_is_echoed_as_text(connect: Connect) -> None:
    large = FakeLargeModel(byte_by_byte)
    large.exposes_token_ids = False
    client = await connect(fake_engine(large))
    refused = await client.post(COMPLETIONS, json=body(COMPLETIONS, return_token_ids=True))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "return_token_ids")
    [choice] = (await whole(client, COMPLETIONS, echo=True, max_tokens=2))["choices"]
    assert choice["text"].startswith("é!")
