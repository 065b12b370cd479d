"""The official OpenAI client's exceptions: each status raises the documented class, complete and streamed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from server.app import create_app
from server.engine_host import EngineHost
from server.settings.config import ServerConfig
from tests.clients.conftest import CONTEXT, GUIDED, KEY, MAX_BODY_BYTES, Caller, caller
from tests.fakes import FakeLargeModel, fake_engine
from tests.server.conftest import uvicorn_server
from tests.server.fake_engine import FakeEngine
from w2s_core.config import Limits
from w2s_core.engine.events import TextCommitted
from w2s_core.errors import UpstreamError, UpstreamTimeoutError, WorkerError

pytestmark = pytest.mark.asyncio(loop_scope="session")
CHAT, COMPLETIONS = "chat.completions.create", "completions.create"
MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "now"}}
STREAM = pytest.mark.parametrize("stream", [False, True])


async def test_models(call: Caller) -> None:
    assert [model.id for model in (await call("models.list")).data] == [
        *GUIDED,
        *(f"thinking-{name}" for name in GUIDED),
    ]
    model = await call("models.retrieve", model="cbs")
    assert (model.id, model.object, model.model_extra["max_model_len"]) == ("cbs", "model", CONTEXT)
    with pytest.raises(openai.NotFoundError) as raised:
        await call("models.retrieve", model="nobody")
    assert raised.value.code == "model_not_found"


@STREAM
@pytest.mark.parametrize(
    ("method", "ask", "error", "code", "param"),
    [
        (CHAT, {"model": "nobody"}, openai.NotFoundError, "model_not_found", "model"),
        (CHAT, {"temperature": 3}, openai.BadRequestError, None, "temperature"),
        (CHAT, {"messages": []}, openai.BadRequestError, None, "messages"),
        (CHAT, {"messages": [{"role": "user"}]}, openai.BadRequestError, None, "messages.0.content"),
        (CHAT, {"messages": [{"role": "clown", "content": "x"}]}, openai.BadRequestError, None, "messages.0.role"),
        (CHAT, {"top_logprobs": 3}, openai.BadRequestError, None, "top_logprobs"),
        (CHAT, {"modalities": ["audio"]}, openai.BadRequestError, None, "modalities"),
        (CHAT, {"web_search_options": {}}, openai.BadRequestError, None, "web_search_options"),
        (CHAT, {"prediction": {"type": "content", "content": "x"}}, openai.BadRequestError, None, "prediction"),
        (CHAT, {"functions": [{"name": "x"}]}, openai.BadRequestError, None, "functions"),
        (CHAT, {"tools": [TOOL, TOOL]}, openai.BadRequestError, None, "tools.1.function.name"),
        (CHAT, {"tool_choice": "required"}, openai.BadRequestError, None, "tool_choice"),
        (CHAT, {"max_tokens": 5000}, openai.BadRequestError, "context_length_exceeded", "messages"),
        (CHAT, {"extra_body": {"guidance": {"beam_width": 0}}}, openai.BadRequestError, None, "guidance.beam_width"),
        (CHAT, {"extra_body": {"guidance": {"pairs": {"x": 1}}}}, openai.BadRequestError, None, "guidance.pairs.x"),
        (CHAT, {"extra_body": {"guidnace": {}}}, openai.BadRequestError, None, "guidnace"),
        (COMPLETIONS, {"suffix": "x"}, openai.BadRequestError, None, "suffix"),
        (COMPLETIONS, {"logprobs": 21}, openai.BadRequestError, None, "logprobs"),
        (COMPLETIONS, {"best_of": 2, "n": 3}, openai.BadRequestError, None, "best_of"),
        (COMPLETIONS, {"max_tokens": 0}, openai.BadRequestError, None, "max_tokens"),
        (COMPLETIONS, {"stop": list("abcde")}, openai.BadRequestError, None, "stop"),
        (COMPLETIONS, {"prompt": [300]}, openai.BadRequestError, None, "prompt"),
        (
            COMPLETIONS,
            {"prompt": "x" * (CONTEXT - 4), "max_tokens": 16},
            openai.BadRequestError,
            "context_length_exceeded",
            "prompt",
        ),
        (COMPLETIONS, {"prompt": "x" * MAX_BODY_BYTES}, openai.APIStatusError, "request_too_large", None),
    ],
)
async def test_what_is_refused(
    call: Caller,
    method: str,
    ask: dict[str, Any],
    error: type[openai.APIStatusError],
    code: str | None,
    param: str | None,
    stream: bool,
) -> None:
    content = {"messages": MESSAGES} if method == CHAT else {"prompt": "x"}
    with pytest.raises(error) as raised:
        await call(method, **{"model": "plain", "stream": stream, **content, **ask})
    assert (raised.value.code, raised.value.param) == (code, param)
    assert raised.value.request_id
    if code == "context_length_exceeded":
        assert f"This model's maximum context length is {CONTEXT} tokens" in raised.value.message
    if code == "request_too_large":
        assert raised.value.status_code == 413


async def test_a_wrong_key(kind: str, url: str) -> None:
    for key in ("wrong", KEY.upper(), KEY + "x"):
        with pytest.raises(openai.AuthenticationError) as raised:
            await caller(kind, url, api_key=key)("models.list")
        assert raised.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("method", "ask"),
    [
        ("embeddings.create", {"model": "plain", "input": "x"}),
        ("responses.create", {"model": "plain", "input": "x"}),
        ("moderations.create", {"input": "x"}),
        ("files.list", {}),
    ],
)
async def test_endpoints_that_are_not_there(call: Caller, method: str, ask: dict[str, Any]) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await call(method, **ask)
    assert raised.value.code == "not_found"


async def test_every_answer_has_its_id_and_its_time(call: Caller) -> None:
    ask = {"model": "plain", "messages": MESSAGES, "max_tokens": 3, "extra_headers": {"x-request-id": "mine-1"}}
    answer = await call("chat.completions.with_raw_response.create", **ask)
    assert answer.headers["x-request-id"] == answer.request_id == "mine-1"
    assert float(answer.headers["openai-processing-ms"]) > 0
    assert (await call(CHAT, **ask))._request_id == "mine-1"


@asynccontextmanager
async def serving(host: EngineHost) -> AsyncIterator[str]:
    async with uvicorn_server(create_app(host, ServerConfig(api_keys=(KEY,)))) as (base, _):
        yield f"{base}/v1"


def on_response(kind: str, react: Any) -> dict[str, Any]:
    """Settings of a client that retries, and calls `react(response)` for every response."""

    async def told(response: Any) -> None:
        react(response)

    hooks = {"response": [react if kind == "sync" else told]}
    make = openai.DefaultHttpxClient if kind == "sync" else openai.DefaultAsyncHttpxClient
    return {"max_retries": 2, "http_client": make(event_hooks=hooks)}


async def test_a_client_that_comes_early_waits_for_the_models(kind: str) -> None:
    """503 with Retry-After: the client retries by itself, after that time."""
    may_load, statuses = threading.Event(), []

    def load() -> FakeEngine:
        may_load.wait()
        return FakeEngine()

    def react(response: Any) -> None:
        statuses.append((response.status_code, response.headers.get("retry-after")))
        may_load.set()

    async with serving(EngineHost(load)) as url:
        listed = await caller(kind, url, **on_response(kind, react))("models.list")
    assert listed.data
    (status, wait), *_, last = statuses
    assert (status, last) == (503, (200, None))
    assert int(wait) >= 1


async def test_a_full_queue_is_waited_for(kind: str) -> None:
    """429 with Retry-After: there is one row, which another request holds until the client got the 429."""
    free, reached, ready = asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop, statuses = asyncio.get_running_loop(), []

    async def gate() -> None:
        reached.set()
        await free.wait()

    def react(response: Any) -> None:
        statuses.append((response.status_code, response.headers.get("retry-after")))
        loop.call_soon_threadsafe(free.set)

    engine = fake_engine(FakeLargeModel(gate=gate), limits=Limits(max_rows=1, max_queued_rows=0))
    ask = {"model": "plain", "messages": MESSAGES, "max_tokens": 2}
    async with serving(EngineHost(lambda: engine, on_ready=lambda _: ready.set())) as url:
        await ready.wait()
        running = asyncio.create_task(caller("async", url)(CHAT, **ask))
        await reached.wait()
        with pytest.raises(openai.RateLimitError) as raised:
            await caller(kind, url)(CHAT, **ask)
        assert raised.value.code == "rate_limit_exceeded"
        answer = await caller(kind, url, **on_response(kind, react))(CHAT, **ask)
        await running
    assert answer.choices[0].finish_reason
    assert [status for status, _ in statuses] == [429, 200]
    assert int(statuses[0][1]) >= 1


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (WorkerError("a worker died"), 500, "internal_error"),
        (UpstreamError("the provider failed"), 502, "upstream_error"),
        (UpstreamTimeoutError("the provider was silent"), 504, "upstream_error"),
    ],
)
async def test_a_failure_before_and_within_an_answer(kind: str, failure: Exception, status: int, code: str) -> None:
    script: list[Any] = []
    ready = asyncio.Event()
    async with serving(EngineHost(lambda: FakeEngine(script), on_ready=lambda _: ready.set())) as url:
        await ready.wait()
        for begun in ([], [TextCommitted(0, "Hel")]):
            script[:] = [*begun, failure]
            for stream in (False, True):
                with pytest.raises(openai.APIError) as raised:
                    await caller(kind, url)(CHAT, model="plain", messages=MESSAGES, stream=stream)
                assert raised.value.code == code
                assert (getattr(raised.value, "status_code", None)) == (None if stream and begun else status)
