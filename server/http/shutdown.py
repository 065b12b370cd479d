"""Graceful shutdown. On SIGTERM the server stops accepting requests, finishes the running ones within
`server.drain_timeout_s` and exits with 0.

SIGINT does the same. SIGHUP reloads the configuration.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

logger = logging.getLogger(__name__)


class GracefulServer(uvicorn.Server):
    """A uvicorn server that drains before it exits.

    On the first signal it calls `drain` and keeps its port open, answering probes and refusing new requests with 503,
    until no request is running or `timeout_s` has passed. Then it shuts down as uvicorn does, which cancels the
    requests that are left. A second signal ends the wait at once.

    uvicorn alone closes its port at once, so that a load balancer gets connection errors instead of 503.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        drain: Callable[[], None],
        timeout_s: float,
        reload: Callable[[], None] = lambda: None,
    ) -> None:
        config.timeout_graceful_shutdown = math.ceil(timeout_s)
        super().__init__(config)
        self.timeout_s = timeout_s
        self._drain = drain
        self._reload = reload
        self._hangup_received = False
        self._had_terminal = sys.stderr.isatty()
        self._exit_signals = 0
        self._deadline: float | None = None

    @property
    def _draining(self) -> bool:
        return self._deadline is not None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Counts the signal; `on_tick` acts on it, because a signal may interrupt any line."""
        self._exit_signals += 1
        if self._exit_signals > 1:
            super().handle_exit(sig, frame)

    def handle_hangup(self, *_: object) -> None:
        """Handles SIGHUP: `on_tick` then calls `reload`, or drains if our terminal was closed."""
        self._hangup_received = True

    async def on_tick(self, counter: int) -> bool:
        """Returns whether to shut down now. uvicorn calls this ten times a second."""
        should_exit = await super().on_tick(counter)
        if self._hangup_received:
            self._hangup_received = False
            if self._had_terminal and not sys.stderr.isatty():  # a closed terminal sends SIGHUP, too
                self._exit_signals += 1
            else:
                self._reload()
        if self._exit_signals and not self._draining:
            self._deadline = time.monotonic() + self.timeout_s
            if running := len(self.server_state.tasks):
                limit = f"for at most {self.timeout_s:g} s; a second signal stops now"
                logger.info("Finishing %d running requests %s", running, limit)
            self._drain()
            return False  # waiting requests are refused in the event loop's next turn
        if self._deadline is None:
            return should_exit
        remaining_s = 0.0 if self._exit_signals > 1 else max(0.0, self._deadline - time.monotonic())
        self.config.timeout_graceful_shutdown = math.ceil(remaining_s)  # for responses that are still being sent
        return should_exit or not remaining_s or not self.server_state.tasks
