"""Leaving without dropping anyone: a signal closes the doors, and the server goes when the last answer is sent."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn


class GracefulServer(uvicorn.Server):
    """On the first signal calls `drain` and stays, answering probes and refusals, until nothing is being answered or
    `timeout_s` has passed; then leaves as uvicorn does, which cancels what is left. A second signal is the time-out.

    uvicorn alone closes its port at once, so that a load balancer meets silence where it should hear 503.
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
        self._hung_up = False
        self._had_terminal = sys.stderr.isatty()
        self._signals = 0
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Only takes note: a signal may come in the middle of any line."""
        self._signals += 1
        if self._signals > 1:
            super().handle_exit(sig, frame)

    def handle_hangup(self, *_: object) -> None:
        """Has `reload` called, in the event loop; where the terminal was closed under us, whoever started us has left,
        and so do we."""
        self._hung_up = True

    async def on_tick(self, counter: int) -> bool:
        """True: leave. uvicorn asks ten times a second."""
        leave = await super().on_tick(counter)
        if self._hung_up:
            self._hung_up = False
            if self._had_terminal and not sys.stderr.isatty():
                self._signals += 1
            else:
                self._reload()
        if self._signals and self._deadline is None:
            self._deadline = time.monotonic() + self.timeout_s
            self._drain()
            return False  # refusing what waits takes a turn of the loop
        if self._deadline is None:
            return leave
        left = 0.0 if self._signals > 1 else max(0.0, self._deadline - time.monotonic())
        self.config.timeout_graceful_shutdown = math.ceil(left)  # for answers that are still on the wire
        return leave or not left or not self.server_state.tasks
