"""Loading, ready, failed, draining, stopped: what probes and clients see, and that the engine is closed."""

from __future__ import annotations

import asyncio
import threading

import httpx

from server.app import create_app
from server.engine_host import EngineHost
from tests.server.conftest import Connect
from tests.server.fake_engine import FakeEngine

CALLS = [("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v1/models/x")]


def client_of(app: object) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")  # type: ignore[arg-type]


async def test_while_loading_it_is_alive_and_not_ready() -> None:
    may_load, ready, engine = threading.Event(), asyncio.Event(), FakeEngine()

    def load() -> FakeEngine:
        may_load.wait()
        return engine

    app = create_app(EngineHost(load, on_ready=lambda _: ready.set()))
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.get("/health")).status_code == 200
        for method, path in [("GET", "/ready"), *CALLS]:
            response = await client.request(method, path)
            assert response.status_code == 503
            assert response.headers["retry-after"]
            assert "still loading" in response.json()["error"]["message"]
        may_load.set()
        await ready.wait()
        assert engine.entered
        for path in ("/health", "/ready", "/v1/models"):
            assert (await client.get(path)).status_code == 200
    assert engine.exited


async def test_when_loading_fails_it_says_so() -> None:
    failures: list[Exception] = []
    failed = asyncio.Event()

    def load() -> FakeEngine:
        raise OSError("no such model")

    def on_failure(error: Exception) -> None:
        failures.append(error)
        failed.set()

    app = create_app(EngineHost(load, on_failure=on_failure))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await failed.wait()
        assert (await client.get("/health")).status_code == 200
        response = await client.get("/ready")
        assert response.status_code == 503
        assert "could not be loaded" in response.json()["error"]["message"]
    assert [str(failure) for failure in failures] == ["no such model"]


async def test_an_engine_that_cannot_start_is_a_failure_too() -> None:
    class Broken(FakeEngine):
        async def __aenter__(self) -> FakeEngine:
            raise RuntimeError("no memory")

    failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
    app = create_app(EngineHost(Broken, on_failure=failed.set_result))
    async with app.router.lifespan_context(app):
        assert str(await failed) == "no memory"


async def test_stopping_while_loading_waits_for_nobody() -> None:
    """Ctrl-C during a download: the thread continues, but nothing waits for it, and its engine is discarded."""
    loading, may_load, loaded = threading.Event(), threading.Event(), threading.Event()

    def load() -> FakeEngine:
        loading.set()
        may_load.wait()
        loaded.set()
        return FakeEngine()

    app = create_app(EngineHost(load))
    async with app.router.lifespan_context(app):
        assert await asyncio.to_thread(loading.wait, 10)
    assert not loaded.is_set()
    may_load.set()
    assert await asyncio.to_thread(loaded.wait, 10)


async def test_without_a_worker_it_is_not_ready(connect: Connect) -> None:
    client = await connect(FakeEngine(ready=False))
    assert (await client.get("/health")).status_code == 200
    response = await client.get("/ready")
    assert response.status_code == 503
    assert response.headers["retry-after"]


async def test_models_are_listed_in_order_with_their_context(connect: Connect) -> None:
    client = await connect()
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["plain", "steered", "best", "org/with/slashes"]
    model = (await client.get("/v1/models/org/with/slashes")).json()
    assert model == listed["data"][-1]
    assert (model["object"], model["owned_by"], model["max_model_len"]) == ("model", "w2s", 128)
    assert model["created"] > 1_700_000_000


async def test_the_description_tells_of_fields_and_errors(connect: Connect) -> None:
    client = await connect()
    schema = (await client.get("/openapi.json")).json()
    operation = schema["paths"]["/v1/chat/completions"]["post"]
    statuses = {"200", "400", "401", "404", "408", "413", "415", "429", "431", "500", "502", "503", "504"}
    assert set(operation["responses"]) == statuses, "no 422 that is never sent"
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert operation["security"]
    body = schema["components"]["schemas"]["ChatBody"]
    assert body["additionalProperties"] is False
    assert {"model", "messages", "guidance", "max_completion_tokens"} <= set(body["properties"])
    assert body["required"] == ["model", "messages"]
    assert (await client.get("/docs")).status_code == 200


async def test_a_draining_server_is_alive_and_refuses() -> None:
    engine, ready = FakeEngine(), asyncio.Event()
    host = EngineHost(lambda: engine, on_ready=lambda _: ready.set())
    app = create_app(host)
    async with app.router.lifespan_context(app), client_of(app) as client:
        await ready.wait()
        assert "connection" not in (await client.get("/ready")).headers
        host.drain()
        assert engine.drained
        assert (await client.get("/health")).status_code == 200
        for method, path in [("GET", "/ready"), *CALLS]:
            response = await client.request(method, path)
            assert (response.status_code, response.headers["connection"]) == (503, "close")
            assert response.headers["retry-after"]
            assert "shutting down" in response.json()["error"]["message"]
