"""A real engine over tiny random models behind a real socket, for tests with third-party clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from operator import attrgetter
from typing import Any, Protocol

import openai
import pytest
import pytest_asyncio

from server.app import create_app
from server.engine_host import EngineHost
from server.settings.config import ServerConfig
from tests.server.conftest import uvicorn_server
from tests.tiny import save_tiny
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig, LargeModelConfig, PairConfig, ServedModelConfig, WorkersConfig
from w2s_core.types import Guidance

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}\n{% endfor %}"
    "<assistant>"
)
CONTEXT = 4096  # tokens, which are bytes
KEY = "sesame"
MAX_BODY_BYTES = 100_000
GUIDED: dict[str, Guidance | None] = {
    "plain": None,
    "cbs": Guidance("cbs", {"pair": 1.0}, beam_width=2, successors=2, chunk_length=6),
    "best": Guidance("best_of_n", {"pair": 1.0}, successors=3),
}


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    """An engine that serves a plain and a guided model; its template renders tools and tool calls."""
    root = tmp_path_factory.mktemp("tiny")
    large, tuned, untuned, thinker = (
        str(save_tiny(root / name, seed=seed, template=template, context_length=CONTEXT, thinks=name == "thinker"))
        for seed, (name, template) in enumerate(
            [("large", TEMPLATE), ("tuned", TEMPLATE), ("untuned", TEMPLATE), ("thinker", f"{TEMPLATE}<think>")]
        )
    )
    return EngineConfig(
        {
            "large": LargeModelConfig(large, tool_format="hermes", reasoning_format="none"),
            "thinker": LargeModelConfig(thinker, tool_format="hermes"),
        },
        {name: ServedModelConfig("large", guidance) for name, guidance in GUIDED.items()}
        | {f"thinking-{name}": ServedModelConfig("thinker", guidance) for name, guidance in GUIDED.items()},
        {"pair": PairConfig(tuned, untuned, prompt_template="")},
        WorkersConfig(devices=("cpu",), threads=1, dtype="float32"),
    )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def url(config: EngineConfig) -> AsyncIterator[str]:
    """The URL of a server that requires `KEY`."""
    ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    host = EngineHost(lambda: build_engine(config), ready.set_result, ready.set_exception)
    settings = ServerConfig(api_keys=(KEY,), max_body_bytes=MAX_BODY_BYTES)
    async with uvicorn_server(create_app(host, settings)) as (base, _):
        await ready
        yield f"{base}/v1"


class Caller(Protocol):
    """`await call("chat.completions.create", model=…)`: the answer, or the list of a stream's chunks."""

    async def __call__(self, method: str, **ask: Any) -> Any: ...


def caller(kind: str, url: str, **settings: Any) -> Caller:
    """Builds calls of the official client, "sync" (in a thread) or "async", by default strict and without retries."""
    settings = {"base_url": url, "api_key": KEY, "max_retries": 0, "_strict_response_validation": True} | settings

    def talk(method: str, ask: dict[str, Any]) -> Any:
        with openai.OpenAI(**settings) as client:
            answer = attrgetter(method)(client)(**ask)
            return list(answer) if ask.get("stream") else answer

    async def call(method: str, **ask: Any) -> Any:
        if kind == "sync":
            return await asyncio.to_thread(talk, method, ask)
        async with openai.AsyncOpenAI(**settings) as client:
            answer = await attrgetter(method)(client)(**ask)
            return [chunk async for chunk in answer] if ask.get("stream") else answer

    return call


# Every mode by both clients, plain, searched and ranked.
WAYS = pytest.mark.parametrize(
    ("kind", "model"), [("async", "plain"), ("sync", "cbs"), ("async", "best")], indirect=["kind"]
)


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def call(kind: str, url: str) -> Caller:
    """The official client, strict, synchronous and asynchronous."""
    return caller(kind, url)


def tokens_of(response: Any) -> dict[str, Any]:
    """The usage of a response, but for the cached tokens, of which the second request of a prompt has more."""
    usage: dict[str, Any] = response.usage.model_dump(exclude={"prompt_tokens_details"})
    return usage
