"""The HTTP/1.1 protocol: uvicorn's h11 protocol with read and write timeouts, a header limit and a connection limit.

Input that is not HTTP is answered with OpenAI's error body.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
import uuid
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.access.policy import Policy
from server.errors import ErrorInfo, error_json, to_error_info
from w2s_core.errors import UnavailableError

logger = logging.getLogger(__name__)

_MAX_UNSENT_BYTES = 2**16  # in the kernel's send buffer: a larger one would hide that a client has stopped reading
_CONNECTIONS_RETRY_S = 1
_LINGER_S = 1.0  # between an error response and the end of its connection


def http_config(app: FastAPI, tls: ssl.SSLContext | None = None, **options: Any) -> uvicorn.Config:
    """The uvicorn configuration: this protocol, no WebSockets, no `server` header, no access log.

    `server/logs/request_log.py` replaces the access log.
    """
    return uvicorn.Config(
        app,
        http=partial(LimitedH11Protocol, policy=app.state.policy),  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_context_factory=None if tls is None else lambda *_: tls,
        **options,
    )


class _Timer:
    """A call after a delay, which can be stopped and started again."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    @property
    def started(self) -> bool:
        return self._handle is not None

    def restart(self, delay_s: float) -> None:
        self.stop()
        self._handle = self._loop.call_later(delay_s, self._callback)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class LimitedH11Protocol(H11Protocol):
    """An h11 protocol that disconnects clients that send or read too slowly.

    A request must have arrived completely, head and body, within `server.request_read_timeout_s` after its connection
    was ready for it; bytes that drip in do not extend that. The same holds for the rest of a body whose response was
    already sent.

    A client that reads must empty the buffers kept for it (64 KiB here, as much in the kernel) within
    `server.write_timeout_s`. Otherwise its connection is aborted, which cancels the request and frees its rows.
    """

    def __init__(self, *args: Any, policy: Policy, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = policy.config
        self._read_timer = _Timer(self.loop, self._on_read_timeout)
        self._write_timer = _Timer(self.loop, self._on_write_timeout)
        self._closing = False  # from then on input is ignored
        self.conn = h11.Connection(h11.SERVER, self._limits.max_header_bytes)

    # Called by the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            accepted = transport.get_extra_info("socket")
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_UNSENT_BYTES)
        if len(self.connections) > self._limits.max_connections:
            error = UnavailableError(
                "The server has reached its limit of open connections. Please try again shortly.", _CONNECTIONS_RETRY_S
            )
            self._refuse(to_error_info(error, ""))
        else:
            self._update_read_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._read_timer.stop()
        self._write_timer.stop()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer.restart(self._limits.write_timeout_s)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_timer.stop()

    def data_received(self, data: bytes) -> None:
        if not self._closing:
            super().data_received(data)

    # Called by uvicorn

    def handle_events(self) -> None:
        super().handle_events()
        self._update_read_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_write_buffer_size():  # closing would wait for an empty buffer without a limit
            self._write_timer.restart(self._limits.write_timeout_s)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answers a request that h11 rejects. h11's own message is not sent, as it may quote the request."""
        if getattr(sys.exception(), "error_status_hint", 400) == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            limit = self._limits.max_header_bytes
            self._refuse(ErrorInfo.http(431, f"The request line and headers are larger than {limit} bytes."))
        else:
            self._refuse(ErrorInfo.http(400, "This is not a valid HTTP request."))

    # Timeouts

    def _update_read_timer(self) -> None:
        """Runs the timer while a request is awaited or arriving. An idle connection is closed earlier, by uvicorn."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._read_timer.stop()
        elif not self._read_timer.started and not self._closing and not self.transport.is_closing():
            self._read_timer.restart(self._limits.request_read_timeout_s)

    def _on_read_timeout(self) -> None:
        logger.info("closed a connection: the client sent its request too slowly: %s", _address(self.client))
        request_begun = self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]
        limit = f"{self._limits.request_read_timeout_s:g} seconds"
        message = f"The request did not arrive completely within {limit}."
        self._refuse(ErrorInfo.http(408, message) if request_begun else None)

    def _on_write_timeout(self) -> None:
        stuck = self.flow.write_paused or self.cycle is None or self.cycle.response_complete
        if (stuck or self.transport.is_closing()) and self.transport.get_write_buffer_size():
            logger.info("aborted a connection: the client did not read its response: %s", _address(self.client))
            self.transport.abort()

    # Closing

    def _refuse(self, error: ErrorInfo | None) -> None:
        """Sends `error` where a response can still be sent, and closes; a running request sees a disconnect."""
        if error is not None and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in _response_events(error):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._read_timer.stop()
        self._closing = True
        if error is None or not self.transport.can_write_eof():
            self.transport.close()
        else:  # closing while more input arrives would reset the connection, and the client might lose the response
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.abort)


def _response_events(error: ErrorInfo) -> list[h11.Event]:
    body = error_json(error).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        "x-request-id": f"req_{uuid.uuid4().hex}",
        "openai-processing-ms": "0",
        **error.headers,
    }
    reason = HTTPStatus(error.spec.status).phrase
    start = h11.Response(status_code=error.spec.status, headers=list(headers.items()), reason=reason)
    return [start, h11.Data(data=body), h11.EndOfMessage()]


def _address(client: tuple[str, int] | None) -> str:
    return f"{client[0]}:{client[1]}" if client else "unknown"
