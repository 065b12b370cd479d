"""HTTP/1.1 from strangers: whoever sends or reads too slowly is cut, what is not HTTP is answered in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
import uuid
from functools import partial
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.access.policy import Policy
from server.errors import HTTP_CODES, INVALID, Failure, Kind, describe, encode
from w2s_core.errors import UnavailableError

logger = logging.getLogger(__name__)

_UNSENT_BYTES = 2**16  # that wait in the kernel: more would hide for long that nobody reads
_FULL_RETRY_S = 1
_LINGER_S = 1.0


def http_config(app: FastAPI, tls: ssl.SSLContext | None = None, **options: Any) -> uvicorn.Config:
    """How uvicorn serves the application: by this protocol, without upgrades, and silent about itself. `request_log`
    says more than its access log would."""
    return uvicorn.Config(
        app,
        http=partial(PatientProtocol, policy=app.state.policy),  # type: ignore[arg-type]  # it is called, and no more
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_context_factory=None if tls is None else lambda *_: tls,
        **options,
    )


class PatientProtocol(H11Protocol):
    """Up to a point, which `server.request_read_timeout_s` and `server.write_timeout_s` set.

    A request must be here whole, head and body, so long after its connection was ready for it: bytes that drip in do
    not extend that. Nor may a body drip in that nobody waits for, because the answer was sent before.
    A reader must empty what is kept for it (64 KiB here, as much in the kernel) within its time. When it does not, its
    connection is aborted, whereupon the request is cancelled and gives back its rows.
    """

    def __init__(self, *args: Any, policy: Policy, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = policy.config
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._leaving = False
        self.conn = h11.Connection(h11.SERVER, self._limits.max_header_bytes)

    # From the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            accepted = transport.get_extra_info("socket")
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        if len(self.connections) > self._limits.max_connections:
            full = UnavailableError("The server has all the connections that it may have.", _FULL_RETRY_S)
            self._refuse(describe(full, ""))
        else:
            self._watch_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching_reading()
        self._stop_watching_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching_writing()

    def data_received(self, data: bytes) -> None:
        if not self._leaving:
            super().data_received(data)

    # From uvicorn

    def handle_events(self) -> None:
        super().handle_events()
        self._watch_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_write_buffer_size():  # closing would wait for it for ever
            self._watch_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """uvicorn calls it where h11 gave up, whose errors may quote what came: so they are not passed on."""
        if getattr(sys.exception(), "error_status_hint", 400) == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            self._refuse(_failure(431, f"The request's head is larger than {self._limits.max_header_bytes} bytes."))
        else:
            self._refuse(_failure(400, "This is not a request of HTTP/1.1."))

    # Time

    def _watch_reading(self) -> None:
        """Between requests, too: uvicorn's own time for an idle connection is shorter."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop_watching_reading()
        elif self._reading is None and not self._leaving and not self.transport.is_closing():
            self._reading = self.loop.call_later(self._limits.request_read_timeout_s, self._sends_too_slowly)

    def _watch_writing(self) -> None:
        self._stop_watching_writing()
        self._writing = self.loop.call_later(self._limits.write_timeout_s, self._reads_too_slowly)

    def _stop_watching_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_watching_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _sends_too_slowly(self) -> None:
        logger.info("a client was too slow to send its request and is cut: %s", _address(self.client))
        waited_for = self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]
        limit = f"{self._limits.request_read_timeout_s:g} seconds"
        self._refuse(_failure(408, f"The request was not here within {limit}.") if waited_for else None)

    def _reads_too_slowly(self) -> None:
        stuck = self.flow.write_paused or self.cycle is None or self.cycle.response_complete
        if (stuck or self.transport.is_closing()) and self.transport.get_write_buffer_size():
            logger.info("a client did not read its answer and is cut: %s", _address(self.client))
            self.transport.abort()

    # The end

    def _refuse(self, failure: Failure | None) -> None:
        """Answers where that is still possible, and closes; the application finds its client gone."""
        if failure is not None and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in _answer(failure):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._stop_watching_reading()
        self._leaving = True
        if failure is None or not self.transport.can_write_eof():
            self.transport.close()
        else:  # closing while more comes in would reset the connection, and the answer might never be read
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.abort)


def _failure(status: int, message: str) -> Failure:
    return Failure(Kind(status, INVALID, HTTP_CODES.get(status)), message)


def _answer(failure: Failure) -> list[h11.Event]:
    body = encode(failure).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        "x-request-id": f"req_{uuid.uuid4().hex}",
        "openai-processing-ms": "0",
        **failure.headers,
    }
    reason = HTTPStatus(failure.kind.status).phrase
    start = h11.Response(status_code=failure.kind.status, headers=list(headers.items()), reason=reason)
    return [start, h11.Data(data=body), h11.EndOfMessage()]


def _address(client: tuple[str, int] | None) -> str:
    return f"{client[0]}:{client[1]}" if client else "unknown"
