"""Circuit breaker and fail-over of a provider with one base_url and with several."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.remote import misbehaving
from tests.remote.conftest import World
from tests.remote.misbehaving import ANSWER, SOON, Behaviour, Call, Connection, answer
from w2s_core.errors import UnavailableError, UpstreamError
from w2s_core.remote.provider import MAX_RETRY_AFTER_S, Provider

BAD: dict[str, Behaviour] = {
    "dropped": misbehaving.drop,
    "malformed": misbehaving.html,
    "500": answer({}, 500),
    "429": answer({}, 429, retry_after="20"),
}


async def post(provider: Provider, affinity: int | None = None) -> dict[str, object]:
    return await asyncio.wait_for(provider.post("/completions", {"prompt": "x"}, affinity=affinity), SOON)


async def fail(provider: Provider) -> None:
    with pytest.raises(UpstreamError):
        await post(provider)


async def test_down_then_at_once_503_then_a_probe_then_up(world: World, caplog: pytest.LogCaptureFixture) -> None:
    server = await world.server(otherwise=misbehaving.drop)
    provider = await world.provider(server, breaker_failures=3, breaker_cooldown_s=5, max_retries=0)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert provider.available
            await fail(provider)
    assert [record.name for record in caplog.records] == ["w2s_core.remote.provider"], "said once"

    assert not provider.available
    for _ in range(10):
        with pytest.raises(UnavailableError, match="The provider of `llama` is down") as caught:
            await post(provider)
        assert caught.value.retry_after_s == 5
    assert len(server.calls) == 3, "it is left alone"

    world.time.now += 5
    assert provider.available
    await fail(provider)
    assert len(server.calls) == 4, "one probe, and it failed"
    assert not provider.available

    world.time.now += 5
    server.otherwise = answer()
    assert await post(provider) == ANSWER
    assert provider.available
    server.otherwise = misbehaving.drop
    await fail(provider)
    assert provider.available, "the count began again"


async def test_while_one_probes_the_others_are_refused(world: World) -> None:
    """At once, also where the probe holds the only slot."""
    server = await world.server(misbehaving.drop, otherwise=misbehaving.hang)
    provider = await world.provider(server, breaker_failures=1, breaker_cooldown_s=5, max_retries=0, max_concurrency=1)
    await fail(provider)
    world.time.now += 5
    probe = asyncio.create_task(post(provider))
    await server.until(lambda: server.busy == 1)
    with pytest.raises(UnavailableError) as caught:
        await post(provider)
    assert caught.value.retry_after_s == 1
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    server.otherwise = answer()
    assert await post(provider) == ANSWER, "a probe whose caller left is followed by another"


async def test_one_request_that_trips_the_provider_shuts_nobody_out(world: World) -> None:
    server = await world.server(otherwise=answer({}, 500))
    provider = await world.provider(server, breaker_failures=3, max_retries=9)
    await fail(provider)
    assert len(server.calls) == 10
    assert provider.available


async def test_a_call_does_not_retry_against_an_open_breaker(world: World) -> None:
    server = await world.server(otherwise=misbehaving.drop)
    provider = await world.provider(server, breaker_failures=1, breaker_cooldown_s=100, max_retries=9)
    with pytest.raises(UnavailableError):
        await post(provider)
    assert len(server.calls) == 1


@pytest.mark.parametrize("status", BAD)
async def test_another_base_url_takes_over_at_once(world: World, status: str) -> None:
    bad, good = await world.server(otherwise=BAD[status]), await world.server()
    provider = await world.provider(bad, good, breaker_failures=100)
    for affinity in range(20):
        assert await post(provider, affinity) == ANSWER
    assert world.statuses.count(status) >= 1
    assert set(world.time.slept) <= {0.0}, "nobody paused"


async def test_one_that_asked_to_be_spared_is_spared_by_all_calls(world: World) -> None:
    limiting = await world.server(answer({}, 429, retry_after="20"))
    other = await world.server()
    provider = await world.provider(limiting, other)
    for affinity in range(40):
        await post(provider, affinity)
    assert len(limiting.calls) == 1
    world.time.now += 20
    for affinity in range(40):
        await post(provider, affinity)
    assert len(limiting.calls) > 1


async def test_a_base_url_rests_no_longer_than_max_retry_after(world: World) -> None:
    limiting = await world.server(answer({}, 429, retry_after="100000"))
    other = await world.server()
    provider = await world.provider(limiting, other)
    for affinity in range(40):
        await post(provider, affinity)
    assert len(limiting.calls) == 1
    world.time.now += MAX_RETRY_AFTER_S
    for affinity in range(40):
        await post(provider, affinity)
    assert len(limiting.calls) > 1


@pytest.mark.parametrize("status", [400, 429])
async def test_a_refusal_proves_that_the_provider_is_healthy(world: World, status: int) -> None:
    """Between two failures it resets the breaker's count, and in answer to a probe it closes the breaker."""
    refused, broken = answer({}, status), answer({}, 500)
    server = await world.server(broken, refused, broken, broken, refused)
    provider = await world.provider(server, breaker_failures=2, breaker_cooldown_s=5, max_retries=0)
    for _ in range(3):
        await fail(provider)
    assert provider.available
    await fail(provider)
    assert not provider.available
    world.time.now += 5
    await fail(provider)
    assert provider.available
    assert await post(provider) == ANSWER


async def test_the_same_prefix_meets_the_same_base_url(world: World) -> None:
    servers = [await world.server() for _ in range(3)]
    provider = await world.provider(*servers)
    for affinity in range(30):
        before = [len(server.calls) for server in servers]
        for _ in range(3):
            await post(provider, affinity)
        gained = [len(server.calls) - count for server, count in zip(servers, before, strict=True)]
        assert sorted(gained) == [0, 0, 3]
    assert all(server.calls for server in servers), "missing one by chance: 3 (2/3)^30, below 2e-5"


async def test_both_down_is_one_clear_error_then_503(world: World) -> None:
    servers = [await world.server(otherwise=misbehaving.drop) for _ in range(2)]
    provider = await world.provider(*servers, breaker_failures=2, max_retries=1)
    for _ in range(2):
        await fail(provider)
    assert [len(server.calls) for server in servers] == [2, 2]
    with pytest.raises(UnavailableError):
        await post(provider)


async def test_killed_in_the_middle_of_twenty_conversations(world: World) -> None:
    """Twenty callers, ten calls each in turn; one of two dies with calls in its hands. Nobody notices."""
    doomed, other = await world.server(), await world.server()
    provider = await world.provider(doomed, other, breaker_failures=3, breaker_cooldown_s=5)
    killed = asyncio.Event()

    async def hold(connection: Connection, call: Call) -> None:
        await connection.until_client_leaves()

    async def kill() -> None:
        await doomed.until(lambda: doomed.busy >= 3)
        await doomed.kill()
        killed.set()

    async def converse(affinity: int) -> int:
        for _ in range(10):
            assert await post(provider, affinity) == ANSWER
        return affinity

    doomed.script.extend([answer()] * 8)
    doomed.otherwise = hold  # from its ninth call on it holds what it gets, until it is killed
    killing = asyncio.create_task(kill())
    finished = await asyncio.wait_for(asyncio.gather(*(converse(i) for i in range(20))), SOON)
    await killing
    assert finished == list(range(20))
    assert "dropped" in world.statuses or "unreachable" in world.statuses
    assert len(other.calls) == 200 - 8
    assert killed.is_set()

    await doomed.start()
    doomed.otherwise = answer()
    world.time.now += 5
    before = len(doomed.calls)
    for affinity in range(20):
        await post(provider, affinity)
    assert len(doomed.calls) > before, "it is back in service"
