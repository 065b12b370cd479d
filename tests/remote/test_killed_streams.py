"""Two provider processes; one is killed while it serves some of twenty streams."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.engine_host import EngineHost
from tests.remote.fake_provider import MODEL
from tests.remote.provider_process import PROMPT_TOKENS
from tests.replica import SOON, Replica, served
from tests.server.conftest import uvicorn_server
from tests.tiny import TEMPLATE, byte_tokenizer
from w2s_core.build.engine import build_engine
from w2s_core.config import (
    EngineConfig,
    RemoteLargeModelConfig,
    RemoteModelConfig,
    RemotePairConfig,
    ServedModelConfig,
)
from w2s_core.types import Guidance

STREAMS = 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer(TEMPLATE).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def providers(tokenizer: str) -> Iterator[list[Replica]]:
    command = [sys.executable, "-m", "tests.remote.provider_process", tokenizer]
    with ExitStack() as stack:
        yield [stack.enter_context(served(command, {})) for _ in range(2)]


@pytest.fixture
async def client(providers: Sequence[Replica], tokenizer: str) -> AsyncIterator[httpx.AsyncClient]:
    """Of this server, behind which everything is remote: the large model and both models of the pair."""

    def at(model: str) -> dict[str, Any]:
        urls = tuple(f"{provider.url}/{model}" for provider in providers)
        return {"base_url": urls, "model": MODEL, "tokenizer": tokenizer}

    large = RemoteLargeModelConfig(**at("large"), flavor="vllm")
    pair = RemotePairConfig(tuned=RemoteModelConfig(**at("tuned")), untuned=RemoteModelConfig(**at("untuned")))
    # Of a beam of one every chunk is final, so that each stream has text after the first; four shall merge into one.
    cbs = {w: Guidance("cbs", {"pair": 1.0}, beam_width=w, successors=3, chunk_length=4) for w in (1, 4)}
    served_models = {"plain": ServedModelConfig("far")}
    served_models |= {f"guided-{w}": ServedModelConfig("far", guidance) for w, guidance in cbs.items()}
    engine = build_engine(EngineConfig({"far": large}, served_models, {"pair": pair}))
    ready = asyncio.Event()
    app = create_app(EngineHost(lambda: engine, on_ready=lambda _: ready.set()))
    async with uvicorn_server(app) as (url, _), httpx.AsyncClient(base_url=url, timeout=SOON) as client:
        await ready.wait()
        yield client


@dataclass
class Stream:
    """One client's. `begun` once it has text."""

    body: dict[str, Any]
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    text: str = ""
    finish_reason: str | None = None

    async def read(self, client: httpx.AsyncClient) -> str:
        async with client.stream("POST", "/v1/completions", json=self.body | {"stream": True}) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    self._take(json.loads(line.removeprefix("data: ")))
        assert self.finish_reason == "length"
        return self.text

    def _take(self, event: dict[str, Any]) -> None:
        assert "error" not in event
        for choice in event["choices"]:
            self.text += choice["text"]
            self.finish_reason = choice["finish_reason"] or self.finish_reason
        if self.text:
            self.begun.set()


def streams(kind: str) -> list[Stream]:
    """Greedy ones, and others by seed."""
    asked = [
        {"model": "plain" if kind == "plain" else "guided-4", "temperature": 0},
        {"model": "plain" if kind == "plain" else "guided-1", "seed": 7},
    ]
    bodies = [asked[i % 2] | {"prompt": f"Say {i:02}: ", "max_tokens": 16} for i in range(STREAMS)]
    assert {len(body["prompt"]) for body in bodies} == {PROMPT_TOKENS}
    return [Stream(body) for body in bodies]


async def read_all(client: httpx.AsyncClient, of: Sequence[Stream]) -> list[str]:
    return await asyncio.gather(*(stream.read(client) for stream in of))


async def held_at(client: httpx.AsyncClient, provider: Replica) -> int:
    held: int = (await client.get(f"{provider.url}/held")).json()
    return held


@pytest.mark.parametrize("kind", ["plain", "guided"])
async def test_twenty_streams_end_as_without_the_kill(
    client: httpx.AsyncClient, providers: Sequence[Replica], kind: str
) -> None:
    undisturbed = await read_all(client, streams(kind))
    assert len(set(undisturbed)) > STREAMS / 2

    doomed, other = providers
    for provider in providers:
        await client.post(f"{provider.url}/hold")
    interrupted = streams(kind)
    reading = asyncio.create_task(read_all(client, interrupted))
    async with asyncio.timeout(SOON):
        await asyncio.gather(*(stream.begun.wait() for stream in interrupted))
        while sum(held := [await held_at(client, provider) for provider in providers]) < STREAMS:
            await asyncio.sleep(0.01)
    assert min(held) > 0, "each has a part of them"
    assert not any(stream.finish_reason for stream in interrupted)

    doomed.send(signal.SIGKILL)
    doomed.left()
    await client.post(f"{other.url}/release")
    assert await reading == undisturbed
