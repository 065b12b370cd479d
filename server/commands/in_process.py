"""A server inside this process: commands speak to it as to a remote one, with the same API, and without a port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import httpx

from server.app import create_app
from server.engine_host import EngineHost
from w2s_core.config import EngineConfig

if TYPE_CHECKING:
    from w2s_core.engine.engine import Engine


def in_process(config: EngineConfig) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    """Serves the models of `config`. Raises what loading them raises."""

    def load() -> Engine:
        from w2s_core.build.engine import build_engine  # slow to import

        return build_engine(config)

    return client_of(load)


@asynccontextmanager
async def client_of(load: Callable[[], Engine]) -> AsyncIterator[httpx.AsyncClient]:
    """Loads an engine and yields a client of the application around it; leaving the context stops the engine.

    The application has no API keys, and no connections whose number it could limit.
    """
    loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    app = create_app(EngineHost(load, lambda _: loaded.set_result(None), loaded.set_exception))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app):
        await loaded
        async with httpx.AsyncClient(transport=transport, base_url="http://in-process", timeout=None) as client:
            yield client
