"""Tiny models and one worker that all tests of this folder share: starting a worker takes seconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from server.app import create_app
from server.engine_host import EngineHost
from tests.server.conftest import uvicorn_server
from tests.tiny import save_tiny
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig, LargeModelConfig, PairConfig, ServedModelConfig, WorkersConfig
from w2s_core.engine.engine import Engine
from w2s_core.pool import backoff
from w2s_core.types import Guidance


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models: a large one, a pair with its vocabulary, a pair with another one."""
    root = tmp_path_factory.mktemp("models")
    seeds = {"large": 0, "tuned": 1, "untuned": 2}
    models = {name: save_tiny(root / name, seed=seed) for name, seed in seeds.items()}
    for name, seed in (("foreign-tuned", 3), ("foreign-untuned", 4)):
        models[name] = save_tiny(root / name, seed=seed, pairs=True)
    return models


@pytest.fixture(scope="session")
def config(folders: dict[str, Path]) -> EngineConfig:
    guidance = Guidance("cbs", {"same": 1.0}, beam_width=3, successors=3, chunk_length=4)
    return EngineConfig(
        large_models={"large": LargeModelConfig(str(folders["large"]))},
        pairs={
            "same": PairConfig(str(folders["tuned"]), str(folders["untuned"])),
            "foreign": PairConfig(
                str(folders["foreign-tuned"]), str(folders["foreign-untuned"]), prompt_template="Q: {prompt}"
            ),
            "alone": PairConfig(str(folders["tuned"]), None, prompt_template="Q: {prompt}"),
            "foreign-alone": PairConfig(str(folders["foreign-tuned"]), None),
        },
        served_models={"plain": ServedModelConfig("large"), "guided": ServedModelConfig("large", guidance)},
        workers=WorkersConfig(devices=("cpu",), threads=1, dtype="float32"),
    )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def served(config: EngineConfig) -> AsyncIterator[tuple[Engine, str]]:
    """One engine with a real worker process and tiny models, and the URL of a server in front of it."""
    ready: asyncio.Future[Engine] = asyncio.get_running_loop().create_future()
    host = EngineHost(lambda: build_engine(config), ready.set_result, ready.set_exception)
    async with uvicorn_server(create_app(host)) as (url, _):
        yield await ready, url


@pytest.fixture(scope="session")
def engine(served: tuple[Engine, str]) -> Engine:
    return served[0]


@pytest.fixture
def mortal(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The engine that a module's tests share, whose worker may be killed: the next one starts without back-off."""
    monkeypatch.setattr(backoff, "STEADY_S", 0.0)
    return engine


@pytest.fixture(scope="session")
def url(served: tuple[Engine, str]) -> str:
    return served[1]


@pytest_asyncio.fixture(loop_scope="session")
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=120) as connected:
        yield connected
