"""Admission control: a FIFO queue counted in rows, and load shedding once it is full.

A row is one sequence that the large model samples (W·K for a guided choice, one for a plain one). A request that finds
the queue full gets `OverloadedError`, which the server answers with 429 and a Retry-After header.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from types import TracebackType

from w2s_core.errors import OverloadedError, ShuttingDownError

_RETRY_AFTER_S = 1


class AdmissionQueue:
    """The admission queue of an engine. It bounds the work in flight and sheds load (429 with Retry-After).

    Tickets of at most `max_rows` rows run at once and at most `max_queued_rows` wait, first come, first served; nothing
    overtakes. A ticket larger than `max_rows` runs alone. Once closed, the queue refuses new tickets.
    """

    def __init__(self, max_rows: int, max_queued_rows: int) -> None:
        self._max_rows = max_rows
        self.max_queued_rows = max_queued_rows
        self._queue: deque[Ticket] = deque()
        self._running: set[Ticket] = set()
        self._closed = False
        self.rows_running = 0

    @property
    def rows_waiting(self) -> int:
        """Rows of all tickets in the queue."""
        return sum(ticket.rows for ticket in self._queue)

    def capacity(self, rows: int) -> int:
        """How many tickets of `rows` rows the idle queue takes at once, running and waiting ones together."""
        return max(1, self._max_rows // rows) + self.max_queued_rows // rows

    def reserve(self, rows: int, request: object = None, on_admitted: Callable[[], None] = lambda: None) -> Ticket:
        """Returns a ticket for `rows` rows, admitted or queued. The caller must enter or cancel it.

        `request` identifies the tickets of one request (see `close`). `on_admitted` is called when they are granted.
        Raises OverloadedError if the queue is full and ShuttingDownError if it is closed.
        """
        if self._closed:
            raise ShuttingDownError
        fits_now = not self._queue and self._fits(rows)
        if not fits_now and self.rows_waiting + rows > self.max_queued_rows:
            raise OverloadedError(
                f"The queue is full ({self.rows_waiting} of {self.max_queued_rows} rows). Please try again later.",
                _RETRY_AFTER_S,
            )
        ticket = Ticket(self, rows, request, on_admitted)
        self._queue.append(ticket)
        self._admit()
        return ticket

    def close(self) -> None:
        """Refuses new tickets, and queued ones unless another ticket of the same request is running.

        Such a request may be streaming to its client, so its remaining prompts are still served.
        """
        self._closed = True
        started = [ticket.request for ticket in self._running if ticket.request is not None]
        for ticket in list(self._queue):
            if not any(ticket.request is request for request in started):
                self._queue.remove(ticket)
                ticket.refuse()
        self._admit()

    def release(self, ticket: Ticket) -> None:
        """Frees the rows of a running ticket, or takes a waiting one out of the queue."""
        if ticket in self._running:
            self._running.remove(ticket)
            self.rows_running -= ticket.rows
        elif ticket in self._queue:
            self._queue.remove(ticket)
        self._admit()

    def _fits(self, rows: int) -> bool:
        # A ticket larger than `max_rows` is admitted once nothing else runs: otherwise it would wait forever.
        return self.rows_running == 0 or self.rows_running + rows <= self._max_rows

    def _admit(self) -> None:
        while self._queue and self._fits(self._queue[0].rows):
            ticket = self._queue.popleft()
            self._running.add(ticket)
            self.rows_running += ticket.rows
            ticket.admit()


class _State(Enum):
    WAITING = auto()
    ADMITTED = auto()
    REFUSED = auto()
    RELEASED = auto()


class Ticket:
    """Rows that are reserved in an `AdmissionQueue`.

    `async with ticket:` waits until the rows are granted and releases them at the end. A ticket that is not entered
    must be cancelled. Entering raises ShuttingDownError if the queue was closed in the meantime.
    """

    def __init__(self, queue: AdmissionQueue, rows: int, request: object, on_admitted: Callable[[], None]) -> None:
        self.rows = rows
        self.request = request
        self.admitted = asyncio.Event()  # also set when refused: it ends the wait
        self._on_admitted = on_admitted
        self._queue = queue
        self._state = _State.WAITING

    async def __aenter__(self) -> Ticket:
        try:
            await self.admitted.wait()
            if self._state is _State.REFUSED:
                raise ShuttingDownError
        except BaseException:
            self.cancel()
            raise
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    def admit(self) -> None:
        """Grants the rows. Called by the queue."""
        self._state = _State.ADMITTED
        self.admitted.set()
        self._on_admitted()

    def refuse(self) -> None:
        """Ends the wait with ShuttingDownError. Called by the queue, which no longer holds the ticket."""
        self._state = _State.REFUSED
        self.admitted.set()

    def cancel(self) -> None:
        """Releases the rows, or gives up waiting for them. Idempotent."""
        if self._state in (_State.WAITING, _State.ADMITTED):
            self._state = _State.RELEASED
            self._queue.release(self)
