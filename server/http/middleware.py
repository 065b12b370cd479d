"""Around every request: an id, the time it took, and an answer even to our own bugs.

Plain ASGI: Starlette's BaseHTTPMiddleware would hide a client's leaving from a stream.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access.policy import Policy
from server.errors import error_response
from w2s_core.errors import ShuttingDownError

_METRICS = "/metrics"
_ADMIN_PATHS = (_METRICS, "/health", "/ready", "/version")
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)


class RequestContext:
    """Sets `scope["state"]["request_id"]`, and the headers `x-request-id` and `openai-processing-ms`.

    While `leaving()`, answers also ask that the connection be closed: whoever keeps it finds nobody there next time.
    """

    def __init__(self, app: ASGIApp, leaving: Callable[[], bool] = lambda: False) -> None:
        self.app = app
        self.leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, started = time.perf_counter(), False
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(round((time.perf_counter() - began) * 1000))
                if self.leaving():
                    headers["connection"] = "close"
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # the time to drain is over; the client still gets an answer
            if not started:
                await error_response(ShuttingDownError(), request_id)(scope, receive, send_with_headers)
            raise
        except Exception as error:
            if started:  # too late to say it in HTTP
                raise
            await error_response(error, request_id)(scope, receive, send_with_headers)


class HeadLimit:
    """Refuses a request whose head is over `server.max_header_bytes` or has more than `server.max_headers` with 431.

    The protocol gives up over a head that is too long before it is complete; this is for one that came at once.
    """

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self.app = app
        self.policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self.app(scope, receive, send)
        else:
            error = HTTPException(431, problem)
            await error_response(error, scope["state"]["request_id"])(scope, receive, send)

    def _problem(self, scope: Scope) -> str | None:
        config, headers = self.policy.config, scope["headers"]
        if len(headers) > config.max_headers:
            return f"The request has more than {config.max_headers} headers."
        target = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if target + sum(len(name) + len(value) for name, value in headers) > config.max_header_bytes:
            return f"The request's head is larger than {config.max_header_bytes} bytes."
        return None


class AdminPort:
    """With `server.admin_port`, metrics are to be had there only, and nothing but metrics, probes and the version."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._hidden(scope):
            await error_response(HTTPException(404), scope["state"]["request_id"])(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _hidden(self, scope: Scope) -> bool:
        if scope["server"] is not None and scope["server"][1] == self.port:
            return scope["path"] not in _ADMIN_PATHS
        return bool(scope["path"] == _METRICS)


class BodyLimit:
    """Refuses a body of more than `server.max_body_bytes` with 413, announced or not: raises HTTPException into the
    reader.

    Not FastAPI's `max_body_size`: it answers in plain text, whatever handlers are installed.
    """

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self.app = app
        self.policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self.policy.config.max_body_bytes
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > most:
            await error_response(_too_large(most), scope["state"]["request_id"])(scope, receive, send)
            return
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise _too_large(most)
            return message

        await self.app(scope, receive_within_limit, send)


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"The body is larger than {most} bytes.")


def _request_id(asked: str | None) -> str:
    return asked if asked and _SANE_ID.fullmatch(asked) else f"req_{uuid.uuid4().hex}"
