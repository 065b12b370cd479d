"""Who may start: a fair queue counted in rows, bounded; beyond it callers are refused at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType

from w2s_core.errors import OverloadedError, ShuttingDownError

_RETRY_AFTER_S = 1


class Admission:
    """At most `max_rows` run and at most `max_queued_rows` wait; first come, first served. Once closed, nobody new."""

    def __init__(self, max_rows: int, max_queued_rows: int) -> None:
        self._max_rows = max_rows
        self.max_queued_rows = max_queued_rows
        self._queue: deque[Ticket] = deque()
        self._running: set[Ticket] = set()
        self._closed = False
        self.rows_running = 0

    @property
    def rows_waiting(self) -> int:
        return sum(ticket.rows for ticket in self._queue)

    def reserve(self, rows: int, request: object = None, on_admitted: Callable[[], None] = lambda: None) -> Ticket:
        """A place in the queue; tickets of one request name it. Enter or cancel every ticket.

        `on_admitted` is called when its turn comes. Raises OverloadedError when the queue is full, ShuttingDownError
        when it is closed.
        """
        if self._closed:
            raise ShuttingDownError
        fits_now = not self._queue and self.rows_running + rows <= self._max_rows
        if not fits_now and self.rows_waiting + rows > self.max_queued_rows:
            raise OverloadedError(
                f"The queue is full ({self.rows_waiting} of {self.max_queued_rows} rows). Please try again later.",
                _RETRY_AFTER_S,
            )
        ticket = Ticket(self, rows, request, on_admitted)
        self._queue.append(ticket)
        self._admit()
        return ticket

    def _admit(self) -> None:
        # A ticket larger than the machine runs alone rather than never.
        while self._queue and (self.rows_running == 0 or self.rows_running + self._queue[0].rows <= self._max_rows):
            ticket = self._queue.popleft()
            self._running.add(ticket)
            self.rows_running += ticket.rows
            ticket.admitted.set()
            ticket.on_admitted()

    def close(self) -> None:
        """Refuses what comes, and what waits unless another ticket of its request runs: that one may be streaming."""
        self._closed = True
        begun = [ticket.request for ticket in self._running if ticket.request is not None]
        for ticket in list(self._queue):
            if not any(ticket.request is request for request in begun):
                self._queue.remove(ticket)
                ticket.refuse()
        self._admit()

    def withdraw(self, ticket: Ticket) -> None:
        """Gives back the rows of a ticket, whether it waits or runs."""
        if ticket in self._running:
            self._running.remove(ticket)
            self.rows_running -= ticket.rows
        elif ticket in self._queue:
            self._queue.remove(ticket)
        self._admit()


class Ticket:
    """`async with ticket:` waits for its turn and gives the rows back at the end. `cancel` before that is enough.

    Entering raises ShuttingDownError when the queue closed meanwhile.
    """

    def __init__(self, admission: Admission, rows: int, request: object, on_admitted: Callable[[], None]) -> None:
        self.rows = rows
        self.request = request
        self.on_admitted = on_admitted
        self.admitted = asyncio.Event()
        self._admission = admission
        self._open = True
        self._refused = False

    async def __aenter__(self) -> Ticket:
        try:
            await self.admitted.wait()
            if self._refused:
                raise ShuttingDownError
        except BaseException:
            self.cancel()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def refuse(self) -> None:
        """Ends the wait without a turn."""
        self._refused = True
        self.admitted.set()

    def cancel(self) -> None:
        """Idempotent."""
        if self._open:
            self._open = False
            self._admission.withdraw(self)
