"""A client's disconnect cancels its search at once; over real connections, without sleeping."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from server.app import create_app
from server.engine_host import EngineHost
from server.http.disconnect import cancel_on_disconnect
from tests.server.conftest import Serve, uvicorn_server
from tests.server.fake_engine import Block, FakeEngine, Script
from w2s_core.engine.events import TextCommitted

SOON = 60  # seconds; only a failing test waits that long
BODY: dict[str, Any] = {"model": "plain", "prompt": "x"}
SPEAKS_THEN_THINKS: Script = [TextCommitted(0, "Hello"), Block()]
THINKS: Script = [Block()]


async def soon(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), SOON)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("script", [SPEAKS_THEN_THINKS, THINKS], ids=["speaks", "thinks"])
async def test_leaving_closes_the_search(serve: Serve, stream: bool, script: Script) -> None:
    """Also before the first event, and while nothing is being sent: no write may be needed to notice it."""
    engine = FakeEngine(script)
    url = await serve(engine)
    async with httpx.AsyncClient(base_url=url) as client:
        asking = asyncio.create_task(client.post("/v1/completions", json={**BODY, "stream": stream}))
        await soon(engine.blocked)
        assert engine.open == 1
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    await soon(engine.closed)
    assert engine.open == 0


async def test_leaving_in_the_middle_of_a_stream(serve: Serve) -> None:
    engine = FakeEngine(SPEAKS_THEN_THINKS)
    async with httpx.AsyncClient(base_url=await serve(engine)) as client:
        async with client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as response:
            async for line in response.aiter_lines():
                assert "Hello" in line, "the text is sent when it is final, not at the end"
                break
            await soon(engine.blocked)
        await soon(engine.closed)


async def test_leaving_a_stream_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine(SPEAKS_THEN_THINKS)
    ready = asyncio.Event()
    app = create_app(EngineHost(lambda: engine, on_ready=lambda _: ready.set()))
    async with uvicorn_server(app) as (url, _), httpx.AsyncClient(base_url=url) as client:
        await soon(ready)
        async with client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as response:
            assert "Hello" in await anext(response.aiter_lines())
    assert engine.open == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_one_that_leaves_does_not_disturb_another(serve: Serve) -> None:
    engine = FakeEngine(lambda request: THINKS if request.sampling.seed == 1 else SPEAKS_THEN_THINKS)
    async with httpx.AsyncClient(base_url=await serve(engine)) as client:
        leaving = asyncio.create_task(client.post("/v1/completions", json={**BODY, "seed": 1}))
        await soon(engine.blocked)
        async with client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as response:
            assert "Hello" in await anext(response.aiter_lines())
            leaving.cancel()
            await soon(engine.closed)
            assert engine.open == 1


@pytest.mark.parametrize(
    ("stream", "script", "status", "text"),
    [
        (True, SPEAKS_THEN_THINKS, 200, "service_unavailable"),
        (True, THINKS, 503, "service_unavailable"),
        (False, THINKS, 503, "service_unavailable"),
    ],
)
async def test_when_the_time_to_drain_is_over_clients_are_told(
    stream: bool, script: Script, status: int, text: str
) -> None:
    engine = FakeEngine(script)
    ready = asyncio.Event()
    app = create_app(EngineHost(lambda: engine, on_ready=lambda _: ready.set()))
    async with httpx.AsyncClient(timeout=SOON) as client:
        async with uvicorn_server(app, drain_timeout_s=0) as (url, server):
            await soon(ready)
            asking = asyncio.create_task(client.post(f"{url}/v1/completions", json={**BODY, "stream": stream}))
            await soon(engine.blocked)
            server.should_exit = True
            response = await asking
        assert response.status_code == status
        assert text in response.text
        assert response.text.endswith("data: [DONE]\n\n") == (status == 200)
    assert engine.exited


# The race itself


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def gone() -> Message:
    return {"type": "http.disconnect"}


async def test_work_that_ends_first_is_the_result() -> None:
    async def work() -> int:
        return 3

    assert await cancel_on_disconnect(never, work()) == 3


async def test_works_own_error_passes() -> None:
    async def work() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await cancel_on_disconnect(never, work())


async def test_work_is_cancelled_once_and_may_await_its_cleaning_up() -> None:
    cancellations = 0
    cleaned = False

    async def work() -> None:
        nonlocal cancellations, cleaned
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancellations += 1
            raise
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            cleaned = True

    with pytest.raises(ClientDisconnect):
        await cancel_on_disconnect(gone, work())
    assert (cancellations, cleaned) == (1, True)


async def test_cancelling_the_whole_cancels_the_work() -> None:
    started, cleaned = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    task = asyncio.create_task(cancel_on_disconnect(never, work()))
    await soon(started)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned.is_set()
