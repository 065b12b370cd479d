"""A managed vLLM is killed under ten guided streams, and their answers are those of an undisturbed run."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from server.app import create_app
from server.engine_host import EngineHost
from tests.managed.conftest import alive, processes_of, vllm_of
from tests.remote.fake_provider import MODEL
from tests.remote.test_killed_streams import Stream, read_all
from tests.replica import SOON, Replica, served
from tests.server.conftest import uvicorn_server
from tests.tiny import TEMPLATE, byte_tokenizer
from w2s_core.build.engine import build_engine
from w2s_core.config import (
    EngineConfig,
    ManagedLargeModelConfig,
    RemoteModelConfig,
    RemotePairConfig,
    ServedModelConfig,
)
from w2s_core.engine.engine import Engine
from w2s_core.managed.server import ManagedVLLM
from w2s_core.types import Guidance, SamplingParams

STREAMS = 10


@pytest.fixture
def pair(model: Path) -> Iterator[Replica]:
    """The provider of the pair, which nobody kills."""
    tokenizer = model.parent / "pair"
    for folder in (model, tokenizer):
        byte_tokenizer(TEMPLATE).save_pretrained(folder)
    with served([sys.executable, "-m", "tests.remote.provider_process", str(tokenizer)], {}) as running:
        yield running


@pytest.fixture
def engine(model: Path, pair: Replica) -> Engine:
    (model / "generation_config.json").write_text('{"top_k": 7}')
    of = {
        role: RemoteModelConfig(base_url=f"{pair.url}/{role}", model=MODEL, tokenizer=str(model))
        for role in ("tuned", "untuned")
    }
    # Of a beam of one every chunk is final, so that each stream has text after the first; four shall merge into one.
    cbs = {w: Guidance("cbs", {"pair": 1.0}, beam_width=w, successors=3, chunk_length=4) for w in (1, 4)}
    return build_engine(
        EngineConfig(
            {MODEL: ManagedLargeModelConfig(model=str(model))},
            {f"guided-{w}": ServedModelConfig(MODEL, guidance) for w, guidance in cbs.items()},
            {"pair": RemotePairConfig(**of)},
        )
    )


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    ready = asyncio.Event()
    app = create_app(EngineHost(lambda: engine, on_ready=lambda _: ready.set()))
    async with uvicorn_server(app) as (url, _), httpx.AsyncClient(base_url=url, timeout=SOON) as client:
        assert (await client.get("/ready")).status_code == 503, "vLLM is not healthy yet"
        await ready.wait()
        yield client


def streams() -> list[Stream]:
    """Greedy ones, and others by seed."""
    asked = [{"model": "guided-4", "temperature": 0}, {"model": "guided-1", "seed": 7}]
    bodies = [asked[i % 2] | {"prompt": f"Say {i:02}: ", "max_tokens": 16} for i in range(STREAMS)]
    return [Stream(body) for body in bodies]


def server_of(engine: Engine) -> ManagedVLLM:
    [server] = [component for component in engine._components if isinstance(component, ManagedVLLM)]
    return server


async def held(engine: Engine) -> int:
    async with httpx.AsyncClient(base_url=server_of(engine).url) as vllm:
        count: int = (await vllm.get("/held")).json()
        return count


async def hold(engine: Engine) -> tuple[list[Stream], list[Stream]]:
    """Ten streams that have begun as far as they can, each of which has a call at vLLM; and those without text."""
    async with httpx.AsyncClient(base_url=server_of(engine).url) as vllm:
        await vllm.post("/hold")
    every = streams()
    return every, [stream for stream in every if stream.body["model"] == "guided-1"]


async def test_ten_guided_streams_end_as_without_the_kill(
    client: httpx.AsyncClient, engine: Engine, model: Path
) -> None:
    assert engine.served_models["guided-1"].sampling == SamplingParams(top_k=7), "as with a local model"
    undisturbed = await read_all(client, streams())
    assert len(set(undisturbed)) > STREAMS / 2

    interrupted, with_text = await hold(engine)
    reading = asyncio.create_task(read_all(client, interrupted))
    async with asyncio.timeout(SOON):
        await asyncio.gather(*(stream.begun.wait() for stream in with_text))
        while await held(engine) < STREAMS:
            await asyncio.sleep(0.01)
    assert not any(stream.finish_reason for stream in interrupted)
    before = processes_of(model)
    vllm_of(model).send_signal(signal.SIGKILL)
    assert await reading == undisturbed
    assert not alive(before)
    assert (await client.get("/ready")).status_code == 200


async def test_what_comes_while_it_is_down_is_refused_and_a_search_that_cannot_go_on_is_told(
    client: httpx.AsyncClient, engine: Engine, model: Path
) -> None:
    (model / "then").write_text("wait")  # the next one never becomes healthy
    server_of(engine)._start_timeout_s = 8.0
    interrupted, _ = await hold(engine)
    body = interrupted[1].body | {"stream": False}
    asking = asyncio.create_task(client.post("/v1/completions", json=body))
    async with asyncio.timeout(SOON):
        while not await held(engine):
            await asyncio.sleep(0.01)
        vllm_of(model).send_signal(signal.SIGKILL)
        while (ready := await client.get("/ready")).status_code == 200:
            await asyncio.sleep(0.01)
    assert "provider" in ready.json()["error"]["message"]
    refused = await client.post("/v1/completions", json=body)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert refused.json()["error"]["message"] == f"The provider of `{MODEL}` is down."
    answer = await asking
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == f"The vLLM of `{MODEL}` has not come back in time."
