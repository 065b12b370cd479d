"""The OpenAPI description, `/openapi.json`: error responses per operation, common headers, and stream events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from server.api.schemas.chat import ChatChunk
from server.api.schemas.completions import Completion
from server.api.schemas.responses import ErrorResponse
from server.errors import ERROR_SPECS, ErrorInfo, InvalidApiKeyError
from server.http.middleware import REQUEST_ID_PATTERN
from w2s_core.errors import (
    DeadlineError,
    OverloadedError,
    RequestError,
    UnavailableError,
    UnknownModelError,
    UpstreamError,
)

Responses = dict[int | str, dict[str, Any]]

_HEADERS: Mapping[str, Any] = {
    "x-request-id": {
        "description": "The request's own `x-request-id` if it matches the pattern, else a new id.",
        "schema": {"type": "string", "pattern": f"^{REQUEST_ID_PATTERN}$"},
    },
    "openai-processing-ms": {
        "description": "Milliseconds from the request's arrival to the start of the response.",
        "schema": {"type": "integer", "minimum": 0},
    },
}
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds to wait before trying again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    }
}
# By status: its description, and an example.
_ERRORS: Mapping[int, tuple[str, ErrorInfo]] = {
    400: (
        "The request is malformed, has an unknown field, a value of a wrong type or out of range, or exceeds the "
        "model's context",
        ErrorInfo(ERROR_SPECS[RequestError], "`temperature`: Input should be less than or equal to 2", "temperature"),
    ),
    401: ("The API key is missing or wrong", ErrorInfo(ERROR_SPECS[InvalidApiKeyError], "Incorrect API key provided.")),
    404: (
        "No model of this name is served",
        ErrorInfo(ERROR_SPECS[UnknownModelError], "The model `gpt-9` does not exist.", "model"),
    ),
    408: (
        "The request did not arrive completely within `server.request_read_timeout_s`",
        ErrorInfo.http(408, "The request did not arrive completely within 30 seconds."),
    ),
    413: (
        "The body is larger than `server.max_body_bytes`",
        ErrorInfo.http(413, "The body is larger than 4194304 bytes."),
    ),
    415: (
        "The `Content-Encoding` of the body is neither gzip nor deflate",
        ErrorInfo.http(415, "This `Content-Encoding` is not supported: br. Send gzip, deflate, or none."),
    ),
    431: (
        "The request has more headers than `server.max_headers`, or its request line and headers are larger than "
        "`server.max_header_bytes`",
        ErrorInfo.http(431, "The request line and headers are larger than 16384 bytes."),
    ),
    429: (
        "The queue is full, or the API key has reached one of its limits",
        ErrorInfo(ERROR_SPECS[OverloadedError], "The queue is full (512 of 512 rows). Please try again later."),
    ),
    500: (
        "An internal error of this server",
        ErrorInfo(
            ERROR_SPECS[Exception], "The server had an error while processing your request. (request id req_5f21c7)"
        ),
    ),
    502: (
        "The provider of a remote model failed, also after retries",
        ErrorInfo(ERROR_SPECS[UpstreamError], "The provider of `llama` failed (500)."),
    ),
    503: (
        "The models are loading, no worker is alive, a provider is unreachable, or the server is shutting down",
        ErrorInfo(ERROR_SPECS[UnavailableError], "The models are still loading. Please try again shortly."),
    ),
    504: (
        "The request, or the provider of a remote model, took too long",
        ErrorInfo(ERROR_SPECS[DeadlineError], "The request did not finish within 600 seconds."),
    ),
}
_REFERENCE = "#/components/schemas/{model}"
_CHUNKS = {"/v1/completions": Completion.__name__, "/v1/chat/completions": ChatChunk.__name__}
COMMON_ERRORS = (401, 429, 431, 500, 503)
BODY_ERRORS = (400, *COMMON_ERRORS, 404, 408, 413, 415)
GENERATION_ERRORS = (*BODY_ERRORS, 502, 504)


def error_responses(*statuses: int) -> Responses:
    """The entries of an operation's `responses` for these error statuses."""
    return {status: _error_response(status) for status in sorted(statuses)}


def _error_response(status: int) -> dict[str, Any]:
    description, _ = _ERRORS[status]
    response: dict[str, Any] = {"model": ErrorResponse, "description": description}
    if status in (429, 503):
        response["headers"] = _RETRY_AFTER
    return response


class DocumentedApp(FastAPI):
    """A FastAPI application whose description includes stream events, the middleware's headers and error examples.

    It leaves out FastAPI's 422, which this server never sends.
    """

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is not None:
            return self.openapi_schema
        schema = super().openapi()
        for methods in schema["paths"].values():
            for operation in methods.values():
                _complete_responses(operation["responses"])
        for unused in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(unused, None)
        _, chunks = models_json_schema([(ChatChunk, "serialization")], ref_template=_REFERENCE)
        schema["components"]["schemas"] |= chunks["$defs"]
        for path, chunk in _CHUNKS.items():
            content = schema["paths"][path]["post"]["responses"]["200"]["content"]
            content["text/event-stream"]["itemSchema"] = _stream_event_schema(chunk)
        return schema


def _stream_event_schema(chunk: str) -> dict[str, Any]:
    """The schema of one event, as OpenAPI 3.2 describes streams. Errors after the first chunk are events, too."""
    schemas = [{"$ref": _REFERENCE.format(model=name)} for name in (chunk, ErrorResponse.__name__)]
    data = {"contentMediaType": "application/json", "contentSchema": {"anyOf": schemas}}
    return {
        "type": "object",
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, data]}},
        "required": ["data"],
    }


def _complete_responses(responses: dict[str, Any]) -> None:
    responses.pop("422", None)
    for status, response in responses.items():
        response["headers"] = {**response.get("headers", {}), **_HEADERS}
        if status != "200":  # not in `error_responses`: FastAPI would drop the nulls of an example
            response["content"]["application/json"]["example"] = _ERRORS[int(status)][1].body
