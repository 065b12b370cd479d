"""The demo as a user has it: SmolLM2-135M-Instruct and the committed pair, in float32, behind a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest_asyncio
from openai import AsyncOpenAI

from server.app import create_app
from server.engine_host import EngineHost
from server.settings.config import load_settings
from tests.server.conftest import uvicorn_server
from w2s_core.build.engine import build_engine
from w2s_core.engine.engine import Engine
from w2s_core.pool.pool import WorkerPool


@dataclass(frozen=True)
class Demo:
    """The running server: its address, an official client, and the engine behind it, for a look inside."""

    url: str
    client: AsyncOpenAI
    lenient: AsyncOpenAI  # for streamed completions: the client's strict type knows no chunk without a finish_reason
    engine: Engine

    async def assert_nothing_is_held(self) -> None:
        """Every row, session and KV slot has been given back."""
        pool = self.engine._worker_pool
        assert isinstance(pool, WorkerPool)
        [state] = await pool.inspect()
        assert (state.jobs, set(state.slots_used.values())) == (0, {0})
        assert self.engine.admission.rows_running == 0


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def demo() -> AsyncIterator[Demo]:
    # One thread: on a machine that others use as well, two of them wait for each other most of the time.
    settings = load_settings(flags={"workers": {"dtype": "float32", "threads": 1}})
    up: asyncio.Future[Engine] = asyncio.get_running_loop().create_future()
    host = EngineHost(lambda: build_engine(settings.engine_config()), up.set_result, up.set_exception)
    async with uvicorn_server(create_app(host, settings.server)) as (url, _):
        engine = await up
        settings: Any = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0, "timeout": 300}
        async with (
            AsyncOpenAI(**settings, _strict_response_validation=True) as client,
            AsyncOpenAI(**settings) as lenient,
        ):
            yield Demo(url, client, lenient, engine)
