"""Maps exceptions to HTTP statuses and to OpenAI's error body, the only place where that happens.

`docs/api.md` lists the same errors for clients. Errors before the response starts become an HTTP response
(`add_exception_handlers`); later ones become an event of the stream (`server/http/sse.py`).
"""

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

INVALID_REQUEST = "invalid_request_error"
_JSON_TYPES = {list: "an array", str: "a string", bool: "a boolean"}
_CLIENT_CLOSED_REQUEST = 499  # nginx's status for it; nobody receives this response


class InvalidApiKeyError(W2SError):
    """The request has no API key, or one that is not configured."""


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """The HTTP status of an error, and OpenAI's `type` and `code` for it."""

    status: int
    type: str
    code: str | None


# An exception takes the entry of its nearest ancestor.
ERROR_SPECS: Mapping[type[Exception], ErrorSpec] = {
    RequestError: ErrorSpec(400, INVALID_REQUEST, None),
    ContextLengthError: ErrorSpec(400, INVALID_REQUEST, "context_length_exceeded"),
    RequestValidationError: ErrorSpec(400, INVALID_REQUEST, None),
    InvalidApiKeyError: ErrorSpec(401, INVALID_REQUEST, "invalid_api_key"),
    UnknownModelError: ErrorSpec(404, INVALID_REQUEST, "model_not_found"),
    OverloadedError: ErrorSpec(429, "rate_limit_exceeded", "rate_limit_exceeded"),
    UnavailableError: ErrorSpec(503, "service_unavailable", "service_unavailable"),
    UpstreamError: ErrorSpec(502, "upstream_error", "upstream_error"),
    UpstreamTimeoutError: ErrorSpec(504, "upstream_error", "upstream_error"),
    DeadlineError: ErrorSpec(504, "timeout", "timeout"),
    Exception: ErrorSpec(500, "internal_error", "internal_error"),
}

# The `code` of errors that the framework, the middleware or the HTTP protocol raises, by status.
HTTP_ERROR_CODES: Mapping[int, str] = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    431: "request_header_fields_too_large",
}


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as the client sees it. `param` is the dotted path of the request's field at fault."""

    spec: ErrorSpec
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def http(cls, status: int, message: str, headers: Mapping[str, str] | None = None) -> ErrorInfo:
        """An error that has a status but no exception of its own, such as 404 or 413."""
        return cls(ErrorSpec(status, INVALID_REQUEST, HTTP_ERROR_CODES.get(status)), message, headers=headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object, `{"error": {message, type, param, code}}`."""
        error = {"message": self.message, "type": self.spec.type, "param": self.param, "code": self.spec.code}
        return {"error": error}


def to_error_info(error: Exception, request_id: str) -> ErrorInfo:
    """Translates an exception for the client, and logs the ones that are not the client's fault.

    An internal error is logged with its traceback; the client gets only the request id to quote.
    """
    if isinstance(error, HTTPException):
        return _from_http_exception(error)
    spec = next(ERROR_SPECS[ancestor] for ancestor in type(error).__mro__ if ancestor in ERROR_SPECS)
    if isinstance(error, RequestValidationError):
        return _from_validation_error(error, spec)
    if isinstance(error, UpstreamError):  # the provider's fault: a traceback of ours would not help
        logger.warning("request %s failed upstream: %s", request_id, error)
    elif spec.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, UnavailableError | DeadlineError):
        logger.error("request %s failed", request_id, exc_info=error)
        reason = str(error) if isinstance(error, W2SError) else "The server had an error while processing your request."
        return ErrorInfo(spec, f"{reason} (request id {request_id})")
    headers = {}
    if isinstance(error, OverloadedError | UnavailableError):
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, InvalidApiKeyError):
        headers["www-authenticate"] = "Bearer"
    return ErrorInfo(spec, str(error), getattr(error, "param", None), headers)


def _from_http_exception(error: HTTPException) -> ErrorInfo:
    message, headers = str(error.detail), dict(error.headers or {})
    if message == "There was an error parsing the body":  # FastAPI's, for UnicodeDecodeError and RecursionError
        message = "The body is not valid JSON: it must be UTF-8, and not be nested too deeply."
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"  # see `server.http.middleware.HeadRequests`
    return ErrorInfo.http(error.status_code, message, headers)


def _from_validation_error(error: RequestValidationError, spec: ErrorSpec) -> ErrorInfo:
    """Reports one of pydantic's problems: a field that does not exist if there is one, as a misspelled field often
    causes the other problems; else the first."""
    problems: Sequence[Mapping[str, Any]] = error.errors()
    problem = next((p for p in problems if p["type"] in ("unknown_field", "unsupported_field")), problems[0])
    if problem["type"] == "json_invalid":
        reason, position = problem["ctx"]["error"], problem["loc"][-1]
        return ErrorInfo(spec, f"The body is not valid JSON: {reason} at character {position}.")
    param = field_path(problem["loc"][1:], error.body, missing=problem["type"] == "missing") or None
    if param is None and not isinstance(error.body, dict):
        return ErrorInfo(spec, _body_problem(error.body))
    if problem["type"] == "unknown_field":
        return ErrorInfo(spec, f"Unknown field: `{param}`.{problem['ctx']['hint']}", param)
    if problem["type"] == "unsupported_field":
        return ErrorInfo(spec, problem["msg"], param)
    # A validator over several fields names the one at fault itself.
    param = problem.get("ctx", {}).get("param", param)
    message = problem["msg"].removeprefix("Value error, ")
    return ErrorInfo(spec, f"`{param}`: {message}" if param else message, param)


def _body_problem(body: Any) -> str:
    """What is wrong with a body that is no JSON object; bytes were not sent as JSON."""
    if body is None:
        return "The body is empty or null: send a JSON object."
    if isinstance(body, bytes):
        return "The body must be sent with `Content-Type: application/json`."
    return f"The body must be a JSON object, not {_JSON_TYPES.get(type(body), 'a number')}."


def field_path(loc: Sequence[int | str], body: Any, *, missing: bool = False) -> str:
    """The dotted path of a field, such as `messages.0.content`, from pydantic's `loc`.

    pydantic puts labels of union members into `loc`. They are dropped: what is not in the body is a label, except the
    last part when `missing` says that this field was not sent.
    """
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
    """The request id that `RequestContext` in `server/http/middleware.py` assigned; empty outside of it."""
    return str(request.scope.get("state", {}).get("request_id", ""))


def error_response(error: Exception, request_id: str) -> Response:
    """The complete HTTP response for an exception."""
    info = to_error_info(error, request_id)
    return Response(error_json(info), info.spec.status, dict(info.headers), "application/json")


def error_json(info: ErrorInfo) -> str:
    """The error body as ASCII JSON, so that a message can quote half a surrogate pair from the request."""
    return json.dumps(info.body)


def add_exception_handlers(app: FastAPI) -> None:
    """Makes the application answer every error in OpenAI's format.

    Unexpected exceptions pass through to `RequestContext` in `server/http/middleware.py`, which answers them with 500.
    """

    async def answer_error(request: Request, error: Exception) -> Response:
        return error_response(error, request_id_of(request))

    async def client_left(request: Request, error: Exception) -> Response:  # noqa: ARG001
        return Response(status_code=_CLIENT_CLOSED_REQUEST)

    for exception in (W2SError, RequestValidationError, HTTPException):
        app.add_exception_handler(exception, answer_error)
    app.add_exception_handler(ClientDisconnect, client_left)
