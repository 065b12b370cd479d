"""`GET /metrics`, while the engine loads and while it serves."""

from __future__ import annotations

import asyncio
import threading

from server.app import create_app
from server.engine_host import EngineHost
from server.settings.config import ServerConfig
from tests.fakes import fake_engine
from tests.server.conftest import Connect
from tests.server.fake_engine import FakeEngine
from tests.server.test_lifecycle import client_of


async def test_it_tells_what_the_engine_counted_and_asks_for_no_key(connect: Connect) -> None:
    client = await connect(fake_engine(), ServerConfig(api_keys=("sk-1",)))
    key = {"authorization": "Bearer sk-1"}
    body = {"model": "guided", "prompt": "x", "max_tokens": 6, "seed": 1}
    assert (await client.post("/v1/completions", json=body, headers=key)).status_code == 200
    assert (await client.post("/v1/completions", json=body | {"model": "who?"}, headers=key)).status_code == 404
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "w2s_chunks_total 2.0" in response.text
    assert 'served_model="guided"' in response.text
    assert "who?" not in response.text


async def test_it_answers_while_the_models_load() -> None:
    may_load, ready = threading.Event(), asyncio.Event()

    def load() -> FakeEngine:
        may_load.wait()
        return FakeEngine()

    app = create_app(EngineHost(load, on_ready=lambda _: ready.set()))
    async with app.router.lifespan_context(app), client_of(app) as client:
        response = await client.get("/metrics")
        assert response.status_code == 200
        assert "w2s_build_info{" in response.text
        may_load.set()
        await ready.wait()
