"""What each API key's holder uses of this replica, and when that is enough."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from server.access.keys import ApiKey
from w2s_core.errors import OverloadedError

_SOON_S = 1


@dataclass(slots=True)
class _Account:
    """`spent`: sampled tokens that no time has made up for yet, as of `at`."""

    running: int = 0
    spent: float = 0.0
    at: float = 0.0


class KeyUsage:
    """One account per key's name, so that a reload keeps it. `clock` in seconds.

    `tokens_per_minute` is a bucket that holds a minute's worth: a request is let in while there is anything in it, and
    takes out what it has sampled when it is over, maybe more than there was.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: defaultdict[str, _Account] = defaultdict(_Account)

    def enter(self, key: ApiKey) -> Lease:
        """Raises OverloadedError, naming the limit that is reached."""
        account = self._accounts[key.name]
        self._recover(account, key)
        if key.max_concurrent_requests is not None and account.running >= key.max_concurrent_requests:
            raise OverloadedError(
                f"Key `{key.name}` has {account.running} requests running: its max_concurrent_requests is "
                f"{key.max_concurrent_requests}. Please try again later.",
                _SOON_S,
            )
        if key.tokens_per_minute is not None and account.spent >= key.tokens_per_minute:
            wait_s = (account.spent - key.tokens_per_minute) * 60 / key.tokens_per_minute
            raise OverloadedError(
                f"Key `{key.name}` has used its tokens_per_minute of {key.tokens_per_minute} (sampled tokens, pruned "
                "ones included). Please try again later.",
                math.floor(wait_s) + 1,
            )
        account.running += 1
        return Lease(account)

    def _recover(self, account: _Account, key: ApiKey) -> None:
        now = self._clock()
        made_up = math.inf if key.tokens_per_minute is None else (now - account.at) * key.tokens_per_minute / 60
        account.spent, account.at = max(0.0, account.spent - made_up), now


class Lease:
    """One request's place. Close it once, with what was sampled."""

    def __init__(self, account: _Account) -> None:
        self._account = account

    def close(self, sampled_tokens: int) -> None:
        self._account.running -= 1
        self._account.spent += sampled_tokens


class LeaseMiddleware:
    """Closes `scope["state"]["lease"]`, if a request got one, when its answer is sent or given up."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            state = scope.get("state", {})
            lease: Lease | None = state.pop("lease", None)
            if lease is not None:
                lease.close(state["record"].sampled_tokens)
