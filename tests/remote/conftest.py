"""Misbehaving providers and clients of them, with the proof that no connection or task is left after a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.remote.misbehaving import SOON, Behaviour, MisbehavingProvider
from tests.tiny import TEMPLATE, byte_tokenizer
from w2s_core.config import ProviderConfig
from w2s_core.remote.provider import Attempt, Provider
from w2s_core.text.tokenizer import HFTokenizer

KEY = "sk-very-secret-0123456789"


@dataclass
class Time:
    """A clock that only moves when told, and a sleep that moves it."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)
    during_sleep: Callable[[], Any] | None = None

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        if self.during_sleep is not None:
            await self.during_sleep()


class World:
    """What a test starts here is stopped and checked by the fixture."""

    def __init__(self) -> None:
        self.time = Time()
        self.servers: list[MisbehavingProvider] = []
        self.providers: list[Provider] = []
        self.attempts: list[Attempt] = []

    async def server(self, *script: Behaviour, otherwise: Behaviour | None = None) -> MisbehavingProvider:
        server = MisbehavingProvider(*script, otherwise=otherwise)
        await server.start()
        self.servers.append(server)
        return server

    async def provider(self, *servers: MisbehavingProvider, max_answer_bytes: int = 10**6, **keys: Any) -> Provider:
        """Its time is `self.time`, except for the deadlines of calls, which are the event loop's."""
        config = ProviderConfig(**{"base_url": tuple(server.url for server in servers), "model": "m", **keys})
        provider = Provider(
            "llama",
            config,
            api_key=KEY,
            on_attempt=self.attempts.append,
            clock=self.time.clock,
            sleep=self.time.sleep,
            max_answer_bytes=max_answer_bytes,
        )
        await provider.start()
        self.providers.append(provider)
        return provider

    @property
    def statuses(self) -> list[str]:
        return [attempt.status for attempt in self.attempts]

    async def close(self) -> None:
        for provider in self.providers:
            assert provider.calls == 0
            await provider.stop()
        for server in self.servers:  # while it still listens: the client must have closed every connection
            await server.until(lambda server=server: server.connections == 0)  # type: ignore[misc]
            await server.kill()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    before = asyncio.all_tasks()
    world = World()
    yield world
    await world.close()
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:  # handlers of connections just closed
        await asyncio.wait(left, timeout=SOON)
    assert not [task for task in left if not task.done()]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    """One token a byte."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer(TEMPLATE).save_pretrained(folder)
    return HFTokenizer(str(folder))


@pytest.fixture(scope="session")
def merging(tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    """Some letters merge, so that more text changes the tokens of the text before."""
    folder: Path = tmp_path_factory.mktemp("merging")
    byte_tokenizer(TEMPLATE, pairs=True).save_pretrained(folder)
    return HFTokenizer(str(folder))
