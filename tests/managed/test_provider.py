"""Calls to a managed vLLM wait for it, and the time that this takes is not theirs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.remote import misbehaving
from tests.remote.conftest import KEY, World, world
from tests.remote.misbehaving import ANSWER, answer
from w2s_core.config import RemoteLargeModelConfig
from w2s_core.errors import UnavailableError
from w2s_core.managed.provider import ManagedProvider

__all__ = ["world"]  # a fixture
RESTART_S, CALL_S = 500.0, 50.0


class FakeServer(SimpleNamespace):
    """A managed vLLM that is back after `RESTART_S` seconds of the world's clock; `asked`: with which `verify`."""

    async def wait_until_up(self, *, verify: bool) -> None:
        self.asked.append(verify)
        if verify:
            self.time.now += RESTART_S
            if self.lost:
                raise UnavailableError("The vLLM of `llama` has not come back in time.", 5)


async def provider_of(world: World, *script: Any, lost: bool = False) -> tuple[ManagedProvider, FakeServer]:
    url = (await world.server(*script)).url.removesuffix("/v1")
    server = FakeServer(name="llama", api_key=KEY, time=world.time, asked=[], ready=True, lost=lost, url=url)
    config = RemoteLargeModelConfig(base_url="http://127.0.0.1:0/v1", model="m", call_timeout_s=CALL_S)
    provider = ManagedProvider(
        server,  # type: ignore[arg-type]
        config,
        on_attempt=world.attempts.append,
        clock=world.time.clock,
        sleep=world.time.sleep,
    )
    await provider.start()
    world.providers.append(provider)
    return provider, server


async def test_a_call_that_was_cut_off_is_made_again_however_long_it_had_to_wait(world: World) -> None:
    failing = answer({"error": {"message": "the engine is dead"}}, 500)
    provider, server = await provider_of(world, misbehaving.drop, failing, answer())
    assert await provider.post("/completions", {}) == ANSWER
    assert server.asked == [False, True, True]
    assert world.statuses == ["dropped", "500", "200"]


async def test_a_call_whose_vllm_does_not_come_back_says_so(world: World) -> None:
    provider, _ = await provider_of(world, misbehaving.drop, lost=True)
    with pytest.raises(UnavailableError, match="has not come back in time"):
        await provider.post("/completions", {})


async def test_it_is_available_while_vllm_is(world: World) -> None:
    provider, server = await provider_of(world)
    assert provider.available
    server.ready = False
    assert not provider.available
