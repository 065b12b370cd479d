"""How long a worker's place stays empty: one that dies again and again must not keep its machine busy with loading."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)
_FIRST_S, _LONGEST_S = 0.5, 30.0
STEADY_S = 60.0  # a worker that lived so long was sound; loading its models alone proves nothing


class Backoff:
    """One place's history. After a steady life the next start is at once; each short one, or none, doubles the wait."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._delay_s = 0.0  # before the next start, unless the life that ends was steady
        self._since: float | None = None

    def started(self) -> None:
        """A worker has loaded its models."""
        self._since = self._clock()

    async def wait(self) -> None:
        """Between a worker's end, or a start that failed, and the next start."""
        if self._since is not None and self._clock() - self._since >= STEADY_S:
            self._delay_s = 0.0
        self._since = None
        delay, self._delay_s = self._delay_s, min(max(_FIRST_S, 2 * self._delay_s), _LONGEST_S)
        if delay:
            _log.warning("the next worker is started in %.1f s", delay)
            await self._sleep(delay)
