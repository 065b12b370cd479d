"""Rate limits per API key: concurrent requests and sampled tokens per minute, counted in this process.

A request over a limit is answered 429 with `Retry-After`. Each replica counts for itself.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from server.access.keys import ApiKey
from w2s_core.errors import OverloadedError

_CONCURRENCY_RETRY_S = 1


@dataclass(slots=True)
class _Account:
    """One key's usage. `used_tokens` are the sampled tokens that the bucket has not regained by `updated_at`."""

    running: int = 0
    used_tokens: float = 0.0
    updated_at: float = 0.0


class KeyUsage:
    """The usage of all API keys, by the key's name, so that it survives a reload. `clock` returns seconds.

    `tokens_per_minute` is a token bucket with a capacity of one minute. A request is accepted while the bucket is not
    empty. The tokens that it sampled, pruned ones included, are taken out when it ends, even if they exceed what is
    left.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: defaultdict[str, _Account] = defaultdict(_Account)

    def acquire(self, key: ApiKey) -> Lease:
        """Counts a request of this key as running until the lease is released.

        Raises OverloadedError naming the limit that is reached.
        """
        account = self._accounts[key.name]
        self._refill(account, key)
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
        return Lease(account)

    def _refill(self, account: _Account, key: ApiKey) -> None:
        now = self._clock()
        elapsed_s = now - account.updated_at
        regained = math.inf if key.tokens_per_minute is None else elapsed_s * key.tokens_per_minute / 60
        account.used_tokens, account.updated_at = max(0.0, account.used_tokens - regained), now


class Lease:
    """One running request of a key. Release it once, when the request ends."""

    def __init__(self, account: _Account) -> None:
        self._account = account

    def release(self, sampled_tokens: int) -> None:
        """Ends the request and charges the tokens that it sampled."""
        self._account.running -= 1
        self._account.used_tokens += sampled_tokens


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
