"""A remote large model over real sockets: several base_urls, one of them killed; clients that disconnect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from tests.fakes import FakeScorer
from tests.remote.fake_provider import MODEL, FakeProvider, events_of, words
from tests.server.conftest import loaded, uvicorn_server
from tests.tiny import TEMPLATE, byte_tokenizer
from w2s_core.build.remote import RemoteModels
from w2s_core.config import RemoteLargeModelConfig, ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Guidance

GUIDANCE = Guidance("cbs", {"likes-a": 1.0}, beam_width=2, successors=2, chunk_length=4)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer(TEMPLATE).save_pretrained(folder)
    return str(folder)


def application(provider: FakeProvider) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return await provider.get("/models")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Any:
        body = await request.json()
        answering = asyncio.create_task(provider.post("/completions", body))

        async def watch() -> None:  # as vLLM does: who leaves ends the work
            while not await request.is_disconnected():
                await asyncio.sleep(0.01)
            answering.cancel()

        watching = asyncio.create_task(watch())
        try:
            answer = await answering
        finally:
            watching.cancel()
        return StreamingResponse(_lines(answer), media_type="text/event-stream") if body.get("stream") else answer

    return app


async def _lines(answer: dict[str, Any]) -> AsyncIterator[str]:
    for event in events_of(answer):
        yield f"data: {json.dumps(event)}\n\n"
    yield "data: [DONE]\n\n"


@asynccontextmanager
async def client_of(urls: list[str], folder: str, flavor: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Engine]]:
    parts = RemoteModels(HFTokenizer)
    config = RemoteLargeModelConfig(
        base_url=tuple(f"{url}/v1" for url in urls), model=MODEL, flavor=flavor, tokenizer=folder
    )
    served = {"plain": ServedModelConfig("far"), "guided": ServedModelConfig("far", GUIDANCE)}
    large_models = {"far": parts.large_model("far", config)}
    engine = Engine(large_models, {"likes-a": FakeScorer()}, served, components=parts.probes)
    async with loaded(engine) as app:  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=60) as client:
            yield client, engine


async def ask(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/completions", json={"model": "guided", "prompt": "Say", "max_tokens": 24, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("flavor", ["vllm", "openai"])
async def test_one_of_two_providers_dies_and_nobody_notices(folder: str, flavor: str) -> None:
    tokenizer = HFTokenizer(folder)
    providers = [FakeProvider(tokenizer, words(tokenizer, ("a", "b", "é"), eos=0.0), flavor=flavor) for _ in range(2)]
    asks = [
        {"model": model, "prompt": f"Say {i}", "temperature": 0, "stream": False}
        for i in range(10)
        for model in ("plain", "guided")
    ]
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(uvicorn_server(application(p), 0)) for p in providers]
        urls = [url for url, _ in servers]
        client, engine = await stack.enter_async_context(client_of(urls, folder, flavor))
        quiet = [(await ask(client, **body))["choices"][0]["text"] for body in asks]
        assert all(provider.calls for provider in providers)  # prompts are spread over both

        victim, (_, server) = providers[0], servers[0]
        before = len(victim.calls)

        async def gate() -> None:  # in the middle of the searches the process is gone, connections and all
            if len(victim.calls) == before + 5:
                server.should_exit = server.force_exit = True
                for listening in server.servers:
                    listening.close()
                for connection in list(server.server_state.connections):
                    connection.transport.abort()  # type: ignore[union-attr]

        victim.gate = gate
        answers = await asyncio.gather(*(ask(client, **body) for body in asks))
        assert len(victim.calls) >= before + 5
        assert [answer["choices"][0]["text"] for answer in answers] == quiet
        assert engine.admission.rows_running == 0


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_who_leaves_ends_the_calls_upstream(folder: str, model: str) -> None:
    provider = FakeProvider(HFTokenizer(folder))
    reached, left = asyncio.Event(), asyncio.Event()
    async with (
        uvicorn_server(application(provider), 0) as (url, _),
        client_of([url], folder, "vllm") as (client, engine),
    ):

        async def gate() -> None:
            reached.set()
            try:
                await asyncio.Event().wait()
            finally:
                left.set()

        provider.gate = gate
        asking = asyncio.create_task(ask(client, model=model))
        await asyncio.wait_for(reached.wait(), 60)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(left.wait(), 60)
        assert engine.admission.rows_running == 0


async def test_what_was_bought_is_in_the_answer(folder: str) -> None:
    tokenizer = HFTokenizer(folder)
    provider = FakeProvider(tokenizer, words(tokenizer, ("a", "b"), eos=0.0))
    async with uvicorn_server(application(provider), 0) as (url, _), client_of([url], folder, "auto") as (client, _):
        answer = await ask(client)
        assert answer["guidance"]["upstream"] == {"calls": 12, "prompt_tokens": 156, "completion_tokens": 96}
        assert answer["usage"]["completion_tokens"] == 24
        models = (await client.get("/v1/models")).json()["data"]
        assert {model["max_model_len"] for model in models} == {500}


async def test_a_provider_that_is_down_is_503_for_its_own_model_only(folder: str) -> None:
    async with client_of(["http://127.0.0.1:9"], folder, "vllm") as (client, _):
        response = await client.post("/v1/completions", json={"model": "guided", "prompt": "x"})
        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert "`far`" in response.json()["error"]["message"]
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/v1/models")).json()["data"][0]["max_model_len"] is None
