"""The limit on concurrent calls, and what happens to calls whose caller is cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.remote import misbehaving
from tests.remote.conftest import World
from tests.remote.misbehaving import ANSWER, SOON, Behaviour, Call, Connection, MisbehavingProvider, answer
from w2s_core.errors import UnavailableError, UpstreamError
from w2s_core.remote.provider import Provider

BODY: dict[str, Any] = {"prompt": "x"}
LIMIT = 3


async def start_calls(provider: Provider, count: int) -> list[asyncio.Task[dict[str, Any]]]:
    return [asyncio.create_task(provider.post("/completions", BODY)) for _ in range(count)]


async def cancel(tasks: list[asyncio.Task[dict[str, Any]]]) -> None:
    for task in tasks:
        task.cancel()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SOON)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)


async def check_all_slots_are_free(provider: Provider, server: MisbehavingProvider) -> None:
    """As many calls as allowed are under way at once."""
    server.script.clear()
    server.otherwise = misbehaving.hang
    tasks = await start_calls(provider, provider.config.max_concurrency)
    await server.until(lambda: server.busy == provider.config.max_concurrency)
    await cancel(tasks)
    await server.until(lambda: server.busy == 0)


async def test_no_more_calls_than_allowed(world: World) -> None:
    gate = asyncio.Event()

    async def wait_then_answer(connection: Connection, call: Call) -> None:
        await gate.wait()
        await answer()(connection, call)

    server = await world.server(otherwise=wait_then_answer)
    provider = await world.provider(server, max_concurrency=LIMIT)
    tasks = await start_calls(provider, 10)
    await server.until(lambda: server.busy == LIMIT)
    assert provider.calls == LIMIT
    gate.set()
    assert await asyncio.wait_for(asyncio.gather(*tasks), SOON) == [ANSWER] * 10
    assert server.most_busy == LIMIT
    assert len(server.calls) == 10
    await check_all_slots_are_free(provider, server)


@pytest.mark.parametrize(
    "behaviour", [misbehaving.hang, misbehaving.hang_in_body, misbehaving.drip], ids=["head", "body", "drip"]
)
async def test_leaving_closes_the_upstream_connection_at_once(world: World, behaviour: Behaviour) -> None:
    server = await world.server(otherwise=behaviour)
    provider = await world.provider(server, max_concurrency=LIMIT)
    tasks = await start_calls(provider, 8)
    await server.until(lambda: server.busy == LIMIT)
    await cancel(tasks)
    await server.until(lambda: server.connections == 0)
    assert provider.calls == 0
    assert set(world.statuses) == {"cancelled"}
    assert len(server.calls) == LIMIT, "those that waited for their turn never went out"
    await check_all_slots_are_free(provider, server)


async def test_leaving_while_pausing_before_a_retry(world: World) -> None:
    server = await world.server(otherwise=misbehaving.drop)
    provider = await world.provider(server, max_concurrency=LIMIT)
    pausing = asyncio.Event()

    async def pause() -> None:
        pausing.set()
        await asyncio.Event().wait()

    world.time.during_sleep = pause
    tasks = await start_calls(provider, 1)
    await asyncio.wait_for(pausing.wait(), SOON)
    assert provider.calls == 0, "who pauses holds no slot"
    await cancel(tasks)
    assert len(server.calls) == 1
    await check_all_slots_are_free(provider, server)


async def test_slots_are_free_again_after_every_kind_of_failure(world: World) -> None:
    server = await world.server(
        misbehaving.drop,
        misbehaving.half_body,
        misbehaving.html,
        misbehaving.reset,
        answer({}, 500),
        answer({}, 429),
        answer({}, 400),
        answer({}, 404),
    )
    provider = await world.provider(server, max_concurrency=LIMIT, max_retries=0, breaker_failures=100)
    for _ in range(8):
        with pytest.raises(UpstreamError):
            await asyncio.wait_for(provider.post("/completions", BODY), SOON)
    await check_all_slots_are_free(provider, server)


async def test_those_that_wait_for_a_slot_are_told_when_the_provider_goes_down(world: World) -> None:
    """They do not each wait for their own failure."""
    gate = asyncio.Event()

    async def wait_then_drop(connection: Connection, call: Call) -> None:
        await gate.wait()
        await misbehaving.drop(connection, call)

    server = await world.server(otherwise=wait_then_drop)
    provider = await world.provider(server, max_concurrency=1, max_retries=0, breaker_failures=1)
    tasks = await start_calls(provider, 5)
    await server.until(lambda: server.busy == 1)
    gate.set()
    first, *others = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SOON)
    assert isinstance(first, UpstreamError)
    assert all(isinstance(other, UnavailableError) for other in others)
    assert len(server.calls) == 1


async def test_stopping_ends_calls_under_way(world: World) -> None:
    server = await world.server(otherwise=misbehaving.hang)
    provider = await world.provider(server)
    tasks = await start_calls(provider, 2)
    await server.until(lambda: server.busy == 2)
    await asyncio.wait_for(provider.stop(), SOON)
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SOON)
    assert all(isinstance(result, UnavailableError | UpstreamError) for result in results)
