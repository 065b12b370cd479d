"""Rate limits per API key: concurrent requests and sampled tokens per minute, counted in this process.

A request over a limit is answered 429 with `Retry-After`. Each replica counts for itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from server.access.keys import ApiKey
from w2s_core.errors import OverloadedError

_CONCURRENCY_RETRY_S = 1


@dataclass(slots=True)
class _Account:
    """One key's usage. `used_tokens` are the sampled tokens that its bucket has not regained by `updated_at`.

    The bucket regains `tokens_per_minute`. Without that limit (None) nothing is counted.
    """

    updated_at: float
    tokens_per_minute: int | None = None
    used_tokens: float = 0.0
    running: int = 0

    def set_limit(self, tokens_per_minute: int | None, now: float) -> None:
        """Brings the account up to date under its old limit, then applies the new one."""
        self.charge(0, now)
        self.tokens_per_minute = tokens_per_minute

    def charge(self, tokens: int, now: float) -> None:
        """Adds what the bucket has regained, then takes `tokens` out."""
        limit, elapsed_s = self.tokens_per_minute, now - self.updated_at
        self.used_tokens = 0.0 if limit is None else max(0.0, self.used_tokens - elapsed_s * limit / 60) + tokens
        self.updated_at = now


class KeyUsage:
    """The usage of all API keys, by the key's name, so that it survives a reload. `clock` returns seconds.

    `tokens_per_minute` is a token bucket with a capacity of one minute. A request is accepted while the bucket is not
    empty. The tokens that it sampled, pruned ones included, are taken out when it ends, even if they exceed what is
    left.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def acquire(self, key: ApiKey) -> Lease:
        """Counts a request of this key as running until the lease is released.

        Raises OverloadedError naming the limit that is reached.
        """
        now = self._clock()
        account = self._accounts.setdefault(key.name, _Account(now))
        account.set_limit(key.tokens_per_minute, now)
        if key.max_concurrent_requests is not None and account.running >= key.max_concurrent_requests:
            raise OverloadedError(
                f"Key `{key.name}` has {account.running} requests running: its max_concurrent_requests is "
                f"{key.max_concurrent_requests}. Please try again later.",
                _CONCURRENCY_RETRY_S,
            )
        if key.tokens_per_minute is not None and account.used_tokens >= key.tokens_per_minute:
            wait_s = (account.used_tokens - key.tokens_per_minute) * 60 / key.tokens_per_minute
            raise OverloadedError(
                f"Key `{key.name}` has used its tokens_per_minute of {key.tokens_per_minute} (sampled tokens, "
                "including pruned ones). Please try again later.",
                math.floor(wait_s) + 1,
            )
        account.running += 1
        return Lease(account, self._clock)

    def reload(self, keys: Iterable[ApiKey]) -> None:
        """Applies the limits of `keys` from this moment on. Forgets other keys, except while their requests run."""
        now, limits = self._clock(), {key.name: key.tokens_per_minute for key in keys}
        self._accounts = {name: a for name, a in self._accounts.items() if name in limits or a.running}
        for name in self._accounts.keys() & limits.keys():
            self._accounts[name].set_limit(limits[name], now)


class Lease:
    """One running request of a key. Release it once, when the request ends."""

    def __init__(self, account: _Account, clock: Callable[[], float]) -> None:
        self._account = account
        self._clock = clock

    def release(self, sampled_tokens: int) -> None:
        """Ends the request and charges the tokens that it sampled, at the time of this call."""
        self._account.running -= 1
        self._account.charge(sampled_tokens, self._clock())


class LeaseMiddleware:
    """Releases `scope["state"]["lease"]`, if there is one, when the request ends in any way."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            state = scope.get("state", {})
            lease: Lease | None = state.pop("lease", None)
            if lease is not None:
                lease.release(state["record"].sampled_tokens)
