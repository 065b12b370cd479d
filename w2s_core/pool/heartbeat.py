"""Heartbeat: when to ping a worker, and when to take it for hung."""

from __future__ import annotations

import time
from collections.abc import Callable

_CHECKS_PER_TIMEOUT = 4  # at least
_MAX_INTERVAL_S = 1.0  # because a Pong also brings metrics


def check_interval_s(timeout_s: float) -> float:
    """Seconds between two checks of a worker whose heartbeat times out after `timeout_s`."""
    return min(_MAX_INTERVAL_S, timeout_s / _CHECKS_PER_TIMEOUT)


class Heartbeat:
    """One worker's heartbeat, checked by the pool every `check_interval_s` seconds."""

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout_s = timeout_s
        self.awaiting_pong = False
        self._clock = clock
        self._last_report = clock()

    @property
    def timed_out(self) -> bool:
        """Whether the worker has sent nothing for `timeout_s` seconds."""
        return self._clock() - self._last_report > self.timeout_s

    def ping_sent(self) -> None:
        """Call it when a Ping is sent. Only one may be unanswered, or a busy worker would collect a heap of them."""
        self.awaiting_pong = True

    def pong_received(self) -> None:
        """Call it when a Pong arrives."""
        self.awaiting_pong = False
        self.report_received()

    def report_received(self) -> None:
        """Call it when anything arrives from the worker: it is alive."""
        self._last_report = self._clock()
