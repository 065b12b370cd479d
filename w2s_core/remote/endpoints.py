"""Which of a provider's base_urls takes a call: a healthy one, and for the same prefix the same one."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from hashlib import blake2b

from w2s_core.remote.breaker import CircuitBreaker


class Endpoint:
    """One base_url and how it fares. `rests_until`: it asked to be spared until then, by the clock given."""

    def __init__(self, url: str, breaker: CircuitBreaker) -> None:
        self.url = url
        self.breaker = breaker
        self.calls = 0  # under way
        self.rests_until = -math.inf


class Endpoints:
    """All base_urls of a provider."""

    def __init__(self, urls: Sequence[str], *, failures: int, cooldown_s: float, clock: Callable[[], float]) -> None:
        self._all = [Endpoint(url, CircuitBreaker(failures, cooldown_s, clock)) for url in urls]
        self._clock = clock
        self._turn = 0

    @property
    def available(self) -> bool:
        """Whether a call may pass to any of them."""
        return any(endpoint.breaker.admits for endpoint in self._all)

    @property
    def retry_after_s(self) -> int:
        """Whole seconds until one of them may be tried again."""
        return max(1, math.ceil(min(endpoint.breaker.remaining_s for endpoint in self._all)))

    @property
    def calls(self) -> int:
        """Under way now."""
        return sum(endpoint.calls for endpoint in self._all)

    def fresh(self, tried: Container[Endpoint]) -> bool:
        """Whether a call that failed at all of `tried` can go elsewhere at once."""
        now = self._clock()
        return any(e not in tried and e.breaker.admits and e.rests_until <= now for e in self._all)

    def choose(self, affinity: int | None, tried: Container[Endpoint] = ()) -> Endpoint | None:
        """The best one that admits a call, None if none does. Untried ones come first, then those that do not rest;
        among equals the same affinity meets the same one (rendezvous hashing: the loss of one moves only its own),
        and a call without affinity the least busy."""
        now = self._clock()
        if affinity is None:
            self._turn += 1

        def order(endpoint: Endpoint) -> tuple[bool, bool, int, bytes]:
            busy = endpoint.calls if affinity is None else 0
            weight = _weight(self._turn if affinity is None else affinity, endpoint.url)
            return endpoint in tried, endpoint.rests_until > now, busy, weight

        return min((e for e in self._all if e.breaker.admits), key=order, default=None)


def _weight(affinity: int, url: str) -> bytes:
    """The same in every process, so that replicas of this server agree."""
    return blake2b(f"{affinity} {url}".encode(), digest_size=8).digest()
