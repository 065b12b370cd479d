"""Restart back-off: how long a process that keeps dying stays down, so that loading does not keep its machine busy."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)
_MIN_DELAY_S, _MAX_DELAY_S = 0.5, 30.0
STEADY_S = 60.0  # a process that ran this long was healthy; having loaded its models proves nothing


class Backoff:
    """Exponential back-off of the restarts of one process: a worker, or a managed vLLM.

    After one that ran for `STEADY_S` the next one starts at once. Each shorter run, and each start that fails, doubles
    the delay before the next start.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._delay_s = 0.0  # before the next start, unless the current run turns out steady
        self._started_at: float | None = None

    def started(self) -> None:
        """Call it when a process has loaded its models."""
        self._started_at = self._clock()

    async def restart(self, name: str, start: Callable[[], Awaitable[T]]) -> T:
        """Calls `start`, with back-off, until it succeeds, and returns what it returned. `name` is for the log."""
        while True:
            await self.wait(name)
            try:
                started = await start()
            except Exception as error:  # whatever it was (no memory, no descriptors), the place must not stay empty
                _log.error("%s could not be restarted: %s", name, error)
                continue
            self.started()
            return started

    async def wait(self, name: str = "worker") -> None:
        """Call it after a process has ended or failed to start: sleeps until the next may start."""
        if self._started_at is not None and self._clock() - self._started_at >= STEADY_S:
            self._delay_s = 0.0
        self._started_at = None
        delay, self._delay_s = self._delay_s, min(max(_MIN_DELAY_S, 2 * self._delay_s), _MAX_DELAY_S)
        if delay:
            _log.warning("%s is started again in %.1f s", name, delay)
            await self._sleep(delay)
