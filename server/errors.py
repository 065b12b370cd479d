"""One table: what went wrong → status and OpenAI's error body, before an answer (handlers) and within one (SSE)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from w2s_core.errors import (
    ContextLengthError,
    DeadlineError,
    OverloadedError,
    RequestError,
    UnavailableError,
    UnknownModelError,
    UpstreamError,
    UpstreamTimeoutError,
    W2SError,
)

logger = logging.getLogger(__name__)

INVALID = "invalid_request_error"


class InvalidApiKeyError(W2SError):
    """No key, or one that is not ours."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of API.md's table."""

    status: int
    type: str
    code: str | None


# An exception takes the row of its nearest ancestor. Where API.md names one word, it is both type and code.
KINDS: Mapping[type[Exception], Kind] = {
    RequestError: Kind(400, INVALID, None),
    ContextLengthError: Kind(400, INVALID, "context_length_exceeded"),
    RequestValidationError: Kind(400, INVALID, None),
    InvalidApiKeyError: Kind(401, INVALID, "invalid_api_key"),
    UnknownModelError: Kind(404, INVALID, "model_not_found"),
    OverloadedError: Kind(429, "rate_limit_exceeded", "rate_limit_exceeded"),
    UnavailableError: Kind(503, "service_unavailable", "service_unavailable"),
    UpstreamError: Kind(502, "upstream_error", "upstream_error"),
    UpstreamTimeoutError: Kind(504, "upstream_error", "upstream_error"),
    DeadlineError: Kind(504, "timeout", "timeout"),
    Exception: Kind(500, "internal_error", "internal_error"),
}

# What the framework itself answers.
HTTP_CODES: Mapping[int, str] = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    431: "request_header_fields_too_large",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as the client sees it."""

    kind: Kind
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        error = {"message": self.message, "type": self.kind.type, "param": self.param, "code": self.kind.code}
        return {"error": error}


def describe(error: Exception, request_id: str) -> Failure:
    """The client's view of an exception. One that is our fault is logged here, with its trace and the request's id."""
    if isinstance(error, HTTPException):
        return _of_framework(error)
    kind = next(KINDS[ancestor] for ancestor in type(error).__mro__ if ancestor in KINDS)
    if isinstance(error, RequestValidationError):
        return _of_validation(error, kind)
    if isinstance(error, UpstreamError):  # not our bug: no trace
        logger.warning("request %s failed upstream: %s", request_id, error)
    elif kind.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, UnavailableError | DeadlineError):
        logger.error("request %s failed", request_id, exc_info=error)
        reason = str(error) if isinstance(error, W2SError) else "The server had an error while processing your request."
        return Failure(kind, f"{reason} (request id {request_id})")
    headers = {}
    if isinstance(error, OverloadedError | UnavailableError):
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, InvalidApiKeyError):
        headers["www-authenticate"] = "Bearer"
    return Failure(kind, str(error), getattr(error, "param", None), headers)


def _of_framework(error: HTTPException) -> Failure:
    kind = Kind(error.status_code, INVALID, HTTP_CODES.get(error.status_code))
    return Failure(kind, str(error.detail), headers=error.headers or {})


def _of_validation(error: RequestValidationError, kind: Kind) -> Failure:
    """The first problem, unless a later one is an unknown field: that is the likelier cause (a typing error)."""
    problems: Sequence[Mapping[str, Any]] = error.errors()
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    if problem["type"] == "json_invalid":
        return Failure(
            kind, f"The body is not valid JSON: {problem['ctx']['error']} at character {problem['loc'][-1]}."
        )
    param = field_path(problem["loc"][1:], error.body, missing=problem["type"] == "missing") or None
    if param is None and not isinstance(error.body, dict):
        return Failure(kind, "The body must be a JSON object, sent with `Content-Type: application/json`.")
    if problem["type"] == "extra_forbidden":
        return Failure(kind, f"Unknown or unsupported field, or an unsupported value of it: `{param}`.", param)
    # A rule over several fields names the one at fault itself.
    param = problem.get("ctx", {}).get("param", param)
    message = problem["msg"].removeprefix("Value error, ")
    return Failure(kind, f"`{param}`: {message}" if param else message, param)


def field_path(loc: Sequence[int | str], body: Any, *, missing: bool = False) -> str:
    """The dotted path of a field, such as `messages.0.content`: pydantic's location without its labels for union
    members, which are recognised by not being in the body; nor is the last part when it is the one missing."""
    path: list[str] = []
    for position, part in enumerate(loc):
        absent = missing and position == len(loc) - 1
        if isinstance(body, dict) and (part in body or absent):
            body = body.get(part)
        elif isinstance(body, list) and isinstance(part, int) and part < len(body):
            body = body[part]
        else:
            continue
        path.append(str(part))
    return ".".join(path)


def request_id_of(request: Request) -> str:
    """What `server.http.middleware` gave this request."""
    return str(request.scope.get("state", {}).get("request_id", ""))


def error_response(error: Exception, request_id: str) -> Response:
    """The whole HTTP answer for an exception."""
    failure = describe(error, request_id)
    return Response(encode(failure), failure.kind.status, dict(failure.headers), "application/json")


def encode(failure: Failure) -> str:
    """JSON in ASCII, so that a message which quotes half a surrogate pair from the request can be sent at all."""
    return json.dumps(failure.body)


def install(app: FastAPI) -> None:
    """Answer everything in OpenAI's shape. Unforeseen exceptions pass on to `server.http.middleware`, the outermost."""

    async def answer(request: Request, error: Exception) -> Response:
        return error_response(error, request_id_of(request))

    async def nobody_listens(request: Request, error: Exception) -> Response:  # noqa: ARG001
        return Response(status_code=499)

    for kind in (W2SError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(ClientDisconnect, nobody_listens)
