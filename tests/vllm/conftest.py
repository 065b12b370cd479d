"""This server in front of real vLLM: SmolLM2 as the large model, and the demo's pair behind two more of them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from openai import AsyncOpenAI

from benchmarks.server_process import Server
from benchmarks.vllm_process import MODEL, vllm_process
from server.app import create_app
from server.engine_host import EngineHost
from server.settings.config import load_settings
from tests.server.conftest import uvicorn_server
from w2s_core.build.engine import build_engine
from w2s_core.demo.models import resolve
from w2s_core.engine.engine import Engine

LARGE, TUNED, UNTUNED = "demo:smollm2-135m-instruct", "demo:reviews-positive", "demo:reviews-negative"


@dataclass(frozen=True)
class Front:
    """This server, an official client of it, and the engine inside."""

    url: str
    client: AsyncOpenAI
    engine: Engine


@asynccontextmanager
async def front(folder: Path, **models: Any) -> AsyncIterator[Front]:
    """Serves `models`, nested like the configuration file, in float32."""
    path = folder / "server.yaml"
    path.write_text(yaml.safe_dump(models | {"workers": {"dtype": "float32"}}), encoding="utf-8")
    settings = load_settings(path)
    up: asyncio.Future[Engine] = asyncio.get_running_loop().create_future()
    host = EngineHost(lambda: build_engine(settings.engine_config()), up.set_result, up.set_exception)
    async with uvicorn_server(create_app(host, settings.server)) as (url, _):
        engine = await up
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:
            yield Front(url, client, engine)


def remote(server: Server, reference: str, **keys: Any) -> dict[str, Any]:
    """The keys of a model behind vLLM."""
    return {"base_url": f"{server.url}/v1", "model": MODEL, "tokenizer": reference, "flavor": "vllm"} | keys


@pytest.fixture(scope="session")
def program() -> str:
    path = os.environ.get("TEST_VLLM")
    if not path:
        pytest.skip("TEST_VLLM does not name the command vllm; `make test-vllm` installs and names it")
    return path


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm(program: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """Serves the demo's large model."""
    log = tmp_path_factory.mktemp("vllm") / "large.log"
    async with vllm_process(program, str(resolve(LARGE)), log, options=["--enforce-eager"]) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pair(program: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Server, Server]]:
    """Serve the demo's tuned and untuned model; the untuned one's folder wants to be sampled greedily."""
    logs = tmp_path_factory.mktemp("vllm-pair")
    folder = shutil.copytree(resolve(UNTUNED), logs / "untuned")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "do_sample": True, "top_k": 1}))
    async with AsyncExitStack() as stack:
        tuned, untuned = [
            await stack.enter_async_context(
                vllm_process(program, str(model), logs / f"{i}.log", kv_gib=1, options=["--enforce-eager"])
            )
            for i, model in enumerate((resolve(TUNED), folder))
        ]
        yield tuned, untuned


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def demo(vllm: Server, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    """`near`: the large model in a worker; `far`: behind vLLM; `text`: behind vLLM by the public API alone."""
    cbs = {"method": "cbs", "pairs": {"positive": 1.0}}
    large = {
        "near": {"model": LARGE},
        "far": {"backend": "remote", **remote(vllm, LARGE)},
        "text": {"backend": "remote", **remote(vllm, LARGE, flavor="openai")},
    }
    served = {name: {"large": name} for name in large}
    served |= {f"{name}-positive": {"large": name, "guidance": cbs} for name in large}
    pairs = {"positive": {"tuned": TUNED, "untuned": UNTUNED, "prompt_template": ""}}
    folder = tmp_path_factory.mktemp("front")
    async with front(folder, large_models=large, pairs=pairs, served_models=served) as running:
        yield running
