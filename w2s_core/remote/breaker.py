"""A circuit breaker: one that fails again and again is left alone, then tried with a single call.

The libraries at hand read the wall clock themselves or let every call through while they probe; this is thirty lines.
"""

from __future__ import annotations

from collections.abc import Callable


class CircuitBreaker:
    """Closed: calls pass. Open: none does, for `cooldown_s`. Then half-open: one call probes, and closes or reopens it.

    Whoever asked `admits` calls `enter`, and in the end one of `succeeded`, `failed`, `abandoned`.
    """

    def __init__(self, failures: int, cooldown_s: float, clock: Callable[[], float]) -> None:
        self._threshold = failures
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._probing = False

    @property
    def closed(self) -> bool:
        return self._opened_at is None

    @property
    def admits(self) -> bool:
        """Whether a call may pass now."""
        return self.closed or (self.remaining_s <= 0 and not self._probing)

    @property
    def remaining_s(self) -> float:
        """Seconds until a call may probe; 0 where one may pass or is probing."""
        return 0.0 if self._opened_at is None else max(0.0, self._opened_at + self._cooldown_s - self._clock())

    def enter(self) -> bool:
        """A call passes; True if it is the probe."""
        probe = not self.closed
        self._probing = self._probing or probe
        return probe

    def succeeded(self) -> None:
        """Any call that was answered proves health, also one that began before the breaker opened."""
        self._failures = 0
        self._opened_at = None
        self._probing = False

    def failed(self, *, probe: bool, counts: bool = True) -> None:
        """`counts` False: an attempt of a call that has been counted. A failed probe always reopens."""
        if probe:
            self._probing = False
            self._opened_at = self._clock()
        elif self.closed:
            self._failures += counts
            if self._failures >= self._threshold:
                self._opened_at = self._clock()

    def abandoned(self, *, probe: bool) -> None:
        """The call ended without a verdict: its caller left. The next call may probe instead."""
        if probe:
            self._probing = False
