"""Heartbeat: when a worker that leaves a ping unanswered is taken for hung.

A worker's silence is the time since a ping that it has not answered, counted by the pool's periodic checks. Each check
counts for one interval at most. If the parent's own event loop stands still (a stopped process, a laptop that sleeps,
a loop that runs only during tests), the next check comes hours late, but its worker has not been silent for hours: the
answer may have arrived long ago and only wait to be delivered.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_CHECKS_PER_TIMEOUT = 4  # at least
_MAX_INTERVAL_S = 1.0  # because a Pong also brings metrics


def check_interval_s(timeout_s: float) -> float:
    """Seconds between two checks of a worker whose heartbeat times out after `timeout_s`."""
    return min(_MAX_INTERVAL_S, timeout_s / _CHECKS_PER_TIMEOUT)


class Heartbeat:
    """One worker's heartbeat. The pool calls `check` every `check_interval_s` seconds."""

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout_s = timeout_s
        self.awaiting_pong = False
        self._interval_s = check_interval_s(timeout_s)
        self._clock = clock
        self._last_check = clock()
        self._silence_s = 0.0  # since the unanswered ping, or since the last report after it

    def check(self) -> bool:
        """Whether the worker has been silent for `timeout_s` seconds since it was asked.

        The interval that ends now is added after the comparison, so it counts from the next check on; until then the
        loop delivers what has arrived.
        """
        now = self._clock()
        elapsed, self._last_check = now - self._last_check, now
        timed_out = self._silence_s >= self.timeout_s
        if self.awaiting_pong:
            self._silence_s += min(elapsed, self._interval_s)
        return timed_out

    def ping_sent(self) -> None:
        """Call it when a Ping is sent. Only one may be unanswered, or pings would pile up on a busy worker."""
        self.awaiting_pong = True
        self._silence_s = 0.0

    def pong_received(self) -> None:
        """Call it when a Pong arrives."""
        self.awaiting_pong = False
        self._silence_s = 0.0

    def report_received(self) -> None:
        """Call it when anything arrives from the worker, which shows that it is alive."""
        self._silence_s = 0.0
