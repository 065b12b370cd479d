"""Chooses which of a provider's base_urls takes a call: a healthy one, and for the same prompt the same one."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from hashlib import blake2b

from w2s_core.remote.breaker import CircuitBreaker


class Endpoint:
    """One base_url with its circuit breaker and its number of calls in flight.

    `paused_until`: the time, by the clock given, until which it asked not to be called (`Retry-After`).
    """

    def __init__(self, url: str, breaker: CircuitBreaker) -> None:
        self.url = url
        self.breaker = breaker
        self.calls = 0  # in flight
        self.paused_until = -math.inf


class Endpoints:
    """All base_urls of a provider, each with a circuit breaker of its own."""

    def __init__(self, urls: Sequence[str], *, failures: int, cooldown_s: float, clock: Callable[[], float]) -> None:
        self._all = [Endpoint(url, CircuitBreaker(failures, cooldown_s, clock)) for url in urls]
        self._clock = clock
        self._turn = 0

    @property
    def available(self) -> bool:
        """Whether any endpoint's breaker allows a call."""
        return any(endpoint.breaker.allows_call for endpoint in self._all)

    @property
    def retry_after_s(self) -> int:
        """Whole seconds, at least 1, until an endpoint may be tried again."""
        return max(1, math.ceil(min(endpoint.breaker.cooldown_left_s for endpoint in self._all)))

    @property
    def calls(self) -> int:
        """Calls in flight, at all endpoints."""
        return sum(endpoint.calls for endpoint in self._all)

    def can_fail_over(self, tried: Container[Endpoint]) -> bool:
        """Whether a call that failed at all of `tried` can go to another endpoint at once."""
        now = self._clock()
        return any(e not in tried and e.breaker.allows_call and e.paused_until <= now for e in self._all)

    def choose(self, affinity: int | None, tried: Container[Endpoint] = ()) -> Endpoint | None:
        """Chooses the best endpoint that allows a call; None if none does.

        Untried endpoints come first, then those that are not paused. Among equals the same `affinity` gets the same
        endpoint by rendezvous hashing, so that the loss of one moves only its own calls; a call without affinity gets
        the least busy one, in turn.
        """
        now = self._clock()
        if affinity is None:
            self._turn += 1

        def order(endpoint: Endpoint) -> tuple[bool, bool, int, bytes]:
            busy = endpoint.calls if affinity is None else 0
            weight = _rendezvous_weight(self._turn if affinity is None else affinity, endpoint.url)
            return endpoint in tried, endpoint.paused_until > now, busy, weight

        return min((e for e in self._all if e.breaker.allows_call), key=order, default=None)


def _rendezvous_weight(affinity: int, url: str) -> bytes:
    """Equal in every process, so that replicas of this server choose alike."""
    return blake2b(f"{affinity} {url}".encode(), digest_size=8).digest()
