"""Circuit breaker: stops calls to an endpoint that keeps failing, and lets a single call probe it after a cooldown.

It is written here because the libraries at hand read the wall clock themselves, or let every call through in the
half-open state.
"""

from __future__ import annotations

from collections.abc import Callable


class CircuitBreaker:
    """Opens after `failures` failed calls in a row.

    Closed: calls pass. Open: none passes for `cooldown_s` seconds by `clock`. Half-open, afterwards: one call probes;
    its success closes the breaker and its failure opens it again.

    A caller that finds `allows_call` true calls `begin_call`, and afterwards one of `record_success`, `record_failure`
    and `record_cancelled`.
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
    def allows_call(self) -> bool:
        """Whether a call may pass now, as a normal one or as the probe."""
        return self.closed or (self.cooldown_left_s <= 0 and not self._probing)

    @property
    def cooldown_left_s(self) -> float:
        """Seconds until a call may probe; 0 where one may pass or is probing."""
        return 0.0 if self._opened_at is None else max(0.0, self._opened_at + self._cooldown_s - self._clock())

    def begin_call(self) -> bool:
        """Registers a call; returns whether it is the probe."""
        probe = not self.closed
        self._probing = self._probing or probe
        return probe

    def record_success(self) -> None:
        """Closes the breaker: any answer proves health, also to a call that began before the breaker opened."""
        self._failures = 0
        self._opened_at = None
        self._probing = False

    def record_failure(self, *, probe: bool, counts: bool = True) -> None:
        """Counts a failed call. A failed probe always opens the breaker again.

        `counts` is false for a retry of a call that has been counted already.
        """
        if probe:
            self._probing = False
            self._opened_at = self._clock()
        elif self.closed:
            self._failures += counts
            if self._failures >= self._threshold:
                self._opened_at = self._clock()

    def record_cancelled(self, *, probe: bool) -> None:
        """Ends a call without a verdict, because its caller was cancelled. The next call may probe instead."""
        if probe:
            self._probing = False
