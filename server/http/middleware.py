"""ASGI middleware: request ids, processing time, HEAD, limits, the admin port, and a 500 for unexpected exceptions.

It is plain ASGI, because Starlette's BaseHTTPMiddleware hides a client's disconnect from a streaming response.
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
_ADMIN_PATHS = (_METRICS, "/health", "/ready", "/ping", "/version")
REQUEST_ID_PATTERN = r"[A-Za-z0-9._:/+=@-]{1,128}"  # what is accepted from a caller
_REQUEST_ID = re.compile(REQUEST_ID_PATTERN, re.ASCII)


class RequestContext:
    """Gives each request an id, measures its time, and answers exceptions that no handler caught.

    It sets `scope["state"]["request_id"]` and the response headers `x-request-id` and `openai-processing-ms`. While
    `draining()`, responses also carry `connection: close`, so that clients connect elsewhere for their next request.
    """

    def __init__(self, app: ASGIApp, draining: Callable[[], bool] = lambda: False) -> None:
        self.app = app
        self.draining = draining

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
                if self.draining():
                    headers["connection"] = "close"
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # `server.drain_timeout_s` has passed; the client still gets a response
            if not started:
                await error_response(ShuttingDownError(), request_id)(scope, receive, send_with_headers)
            raise
        except Exception as error:
            if started:  # the status is already sent
                raise
            await error_response(error, request_id)(scope, receive, send_with_headers)


class HeadRequests:
    """Answers HEAD as GET, with its status and headers and without its body: some load balancers probe with HEAD."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app({**scope, "method": "GET"}, receive, send_without_body)


class HeaderLimit:
    """Answers 431 when a request line and its headers exceed `server.max_header_bytes`, or number more than
    `server.max_headers`.

    The protocol aborts a head that exceeds the limit while it is still incomplete; this covers one that arrived in
    one piece.
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
            return f"The request line and headers are larger than {config.max_header_bytes} bytes."
        return None


class AdminPortFilter:
    """Serves `/metrics` only on `server.admin_port`, and on that port only metrics, probes and the version."""

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
    """Answers 413 when a body exceeds `server.max_body_bytes`.

    A larger `content-length` is refused at once; without one, `receive` raises HTTPException as soon as the limit is
    exceeded. FastAPI's `max_body_size` is not used: it answers in plain text, whatever handlers are installed.
    """

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self.app = app
        self.policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.policy.config.max_body_bytes
        content_length = Headers(scope=scope).get("content-length", "0")
        if content_length.isdecimal() and int(content_length) > limit:
            await error_response(body_too_large(limit), scope["state"]["request_id"])(scope, receive, send)
            return
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise body_too_large(limit)
            return message

        await self.app(scope, receive_within_limit, send)


def body_too_large(limit: int) -> HTTPException:
    """The error of a body over `server.max_body_bytes`."""
    return HTTPException(413, f"The body is larger than {limit} bytes.")


def _request_id(from_caller: str | None) -> str:
    return from_caller if from_caller and _REQUEST_ID.fullmatch(from_caller) else f"req_{uuid.uuid4().hex}"
