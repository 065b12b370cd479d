"""The playground in a browser, over an engine whose models are fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest_asyncio
from playwright.async_api import Browser
from starlette.types import ASGIApp, Receive, Scope, Send

from server.app import create_app
from server.engine_host import EngineHost
from server.settings.config import ServerConfig
from tests.browser import Visit, browser, visiting
from tests.server.conftest import uvicorn_server

__all__ = ["browser"]
Visiting = Callable[..., Any]


class Prefix:
    """A proxy that has the server behind a path: it knows no other, and takes it away."""

    def __init__(self, app: Any, prefix: str) -> None:
        self._app: ASGIApp = app
        self._prefix = prefix
        self.state = app.state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            scope = {
                **scope,
                "path": path.removeprefix(self._prefix) if path.startswith(self._prefix) else "/elsewhere",
            }
        await self._app(scope, receive, send)


@asynccontextmanager
async def serving(engine: Any, config: ServerConfig | None = None, prefix: str = "") -> AsyncIterator[str]:
    """The address of a server with this engine."""
    ready = asyncio.Event()
    app: Any = create_app(EngineHost(lambda: engine, on_ready=lambda _: ready.set()), config)
    async with uvicorn_server(Prefix(app, prefix) if prefix else app) as (url, _):
        await ready.wait()
        yield url + prefix


@pytest_asyncio.fixture(loop_scope="session")
async def visit(browser: Browser) -> AsyncIterator[Callable[..., Any]]:
    """`await visit(engine, fragment="", config=…, prefix=…, **context)`: a visit to the playground of a new server."""
    async with AsyncExitStack() as stack:

        async def start(
            engine: Any, fragment: str = "", config: ServerConfig | None = None, prefix: str = "", **options: Any
        ) -> Visit:
            url = await stack.enter_async_context(serving(engine, config, prefix))
            return await stack.enter_async_context(visiting(browser, f"{url}/playground{fragment}", **options))

        yield start
