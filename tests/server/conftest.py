"""The application over a scripted engine: in process, or behind a real socket where the connection matters."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from server.app import create_app
from server.engine_host import EngineHost
from server.http.protocol import http_config
from server.settings.config import ServerConfig
from tests.server.fake_engine import FakeEngine

Connect = Callable[..., Awaitable[httpx.AsyncClient]]
Serve = Callable[..., Awaitable[str]]


@asynccontextmanager
async def loaded(engine: FakeEngine, config: ServerConfig | None = None) -> AsyncIterator[object]:
    """The application with its engine loaded."""
    ready = asyncio.Event()
    app = create_app(EngineHost(lambda: engine, on_ready=lambda _: ready.set()), config)
    async with app.router.lifespan_context(app):
        await ready.wait()
        yield app


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """`await connect(engine, config)`: an HTTP client of the application, without a socket."""
    async with AsyncExitStack() as stack:

        async def start(engine: FakeEngine | None = None, config: ServerConfig | None = None) -> httpx.AsyncClient:
            app = await stack.enter_async_context(loaded(engine or FakeEngine(), config))
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
            return await stack.enter_async_context(client)

        yield start


@asynccontextmanager
async def uvicorn_server(app: Any, drain_timeout_s: int = 5) -> AsyncIterator[tuple[str, uvicorn.Server]]:
    """A real server on a free port of 127.0.0.1; it listens before this yields."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = hasattr(getattr(app, "state", None), "policy")
        config = http_config(app) if ours else uvicorn.Config(app, lifespan="on", log_config=None)
        config.timeout_graceful_shutdown = drain_timeout_s
        server = uvicorn.Server(config)
        running = asyncio.create_task(server._serve([listening]))  # not `serve`: it would take the tests' signals
        host, port = listening.getsockname()
        try:
            yield f"http://{host}:{port}", server
        finally:
            server.should_exit = True
            await running


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`await serve(engine, config)`: the URL of a real server."""
    async with AsyncExitStack() as stack:

        async def start(engine: FakeEngine | None = None, config: ServerConfig | None = None) -> str:
            ready = asyncio.Event()
            host = EngineHost(lambda: engine or FakeEngine(), on_ready=lambda _: ready.set())
            url, _ = await stack.enter_async_context(uvicorn_server(create_app(host, config)))
            await ready.wait()
            return url

        yield start
