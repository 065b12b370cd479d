"""Required and named calls through a real worker, with a tiny random model whose text is wild."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from server.app import create_app
from server.engine_host import EngineHost
from tests.server.conftest import uvicorn_server
from tests.tiny import TEMPLATE, save_tiny
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig, LargeModelConfig, PairConfig, ServedModelConfig, WorkersConfig
from w2s_core.types import Guidance

pytestmark = pytest.mark.asyncio(loop_scope="session")

CITY = {"type": "object", "properties": {"city": {"enum": ["Bern", "Rome"]}}, "required": ["city"]}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": {**CITY, "additionalProperties": False}}}
    for name in ("weather", "time")
]
MESSAGES = [{"role": "user", "content": "Hi"}]
FORMATS = ("hermes", "llama3_json", "mistral")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[openai.AsyncOpenAI]:
    """A strict client of one server, whose worker holds one model for every format."""
    folder: Path = save_tiny(tmp_path_factory.mktemp("tools"), template="{% if tools %}tools{% endif %}" + TEMPLATE)
    pair = Guidance("cbs", {"pair": 1.0}, beam_width=2, successors=2, chunk_length=8)
    config = EngineConfig(
        {name: LargeModelConfig(str(folder), tool_format=name) for name in FORMATS},
        {f"{name}-plain": ServedModelConfig(name) for name in FORMATS}
        | {f"{name}-guided": ServedModelConfig(name, pair) for name in FORMATS},
        {"pair": PairConfig(str(folder), str(folder), prompt_template="")},
        WorkersConfig(devices=("cpu",), threads=1, dtype="float32"),
    )
    ready = asyncio.Event()
    app = create_app(EngineHost(lambda: build_engine(config), on_ready=lambda _: ready.set()))
    async with uvicorn_server(app) as (base, _):
        await ready.wait()
        strict = openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="x", max_retries=0, _strict_response_validation=True)
        async with strict:
            yield strict


@pytest.mark.parametrize("model", [f"{name}-{mode}" for name in FORMATS for mode in ("plain", "guided")])
async def test_required_and_named_calls_are_made(client: openai.AsyncOpenAI, model: str) -> None:
    named = {"type": "function", "function": {"name": "time"}}
    for seed, choice in enumerate(["required", named]):
        answer = await client.chat.completions.create(
            model=model,
            messages=MESSAGES,  # type: ignore[arg-type]
            tools=TOOLS,  # type: ignore[arg-type]
            tool_choice=choice,  # type: ignore[arg-type]
            parallel_tool_calls=False,
            seed=seed,
            max_tokens=350,
        )
        [found] = answer.choices
        assert found.finish_reason == "tool_calls"
        assert found.message.content is None
        [call] = found.message.tool_calls
        assert call.function.name in (["weather", "time"] if choice == "required" else ["time"])
        assert json.loads(call.function.arguments)["city"] in ("Bern", "Rome")


@pytest.mark.parametrize("name", FORMATS)
async def test_one_grammar_at_a_time(client: openai.AsyncOpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(
            model=f"{name}-plain",
            messages=MESSAGES,  # type: ignore[arg-type]
            tools=TOOLS,  # type: ignore[arg-type]
            tool_choice="required",
            response_format={"type": "json_object"},
        )
    assert raised.value.param == "tool_choice"
