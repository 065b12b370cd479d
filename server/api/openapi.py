"""The API's description, `/openapi.json`: which errors an operation can answer, and headers that every answer has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from server.api.schemas.chat import ChatChunk
from server.api.schemas.completions import Completion
from server.api.schemas.responses import ErrorResponse
from server.errors import HTTP_CODES, INVALID, KINDS, Failure, InvalidApiKeyError, Kind
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
        "description": "The caller's `x-request-id`, if it sent a sane one, or one made here.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=@-]{1,128}$"},
    },
    "openai-processing-ms": {
        "description": "Milliseconds until the answer began.",
        "schema": {"type": "integer", "minimum": 0},
    },
}
_RETRY_AFTER = {
    "Retry-After": {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer", "minimum": 1}}
}
# Per status: what it is for, and an example.
_EXAMPLES: Mapping[int, tuple[str, Failure]] = {
    400: (
        "Malformed, of a wrong type, out of range, unknown, or more than the model's context",
        Failure(KINDS[RequestError], "`temperature`: Input should be less than or equal to 2", "temperature"),
    ),
    401: ("No API key, or a wrong one", Failure(KINDS[InvalidApiKeyError], "Incorrect API key provided.")),
    404: (
        "No model of this name is served",
        Failure(KINDS[UnknownModelError], "The model `gpt-9` does not exist.", "model"),
    ),
    408: (
        "The request was not here whole within `server.request_read_timeout_s`",
        Failure(Kind(408, INVALID, HTTP_CODES[408]), "The request was not here within 30 seconds."),
    ),
    413: (
        "The body is larger than `server.max_body_bytes`",
        Failure(Kind(413, INVALID, HTTP_CODES[413]), "The body is larger than 4194304 bytes."),
    ),
    431: (
        "The request's line and headers are too many, or larger than `server.max_header_bytes`",
        Failure(Kind(431, INVALID, HTTP_CODES[431]), "The request's head is larger than 16384 bytes."),
    ),
    429: (
        "More than can wait, or than the API key may",
        Failure(KINDS[OverloadedError], "Too many requests wait. Please try again later."),
    ),
    500: (
        "A fault of this server",
        Failure(KINDS[Exception], "The server had an error while processing your request. (request id req_5f21c7)"),
    ),
    502: (
        "A provider of a remote model failed, after retries",
        Failure(KINDS[UpstreamError], "The provider of `llama` failed: it answered 500."),
    ),
    503: (
        "The models are loading, no worker is alive, or the server is leaving",
        Failure(KINDS[UnavailableError], "The models are still loading. Please try again shortly."),
    ),
    504: (
        "The request's time was up, or a provider's was",
        Failure(KINDS[DeadlineError], "The request took longer than 600 seconds."),
    ),
}
_REFERENCE = "#/components/schemas/{model}"
_CHUNKS = {"/v1/completions": Completion.__name__, "/v1/chat/completions": ChatChunk.__name__}
ANYWHERE = (401, 429, 431, 500, 503)
WITH_A_BODY = (400, *ANYWHERE, 404, 408, 413)
GENERATING = (*WITH_A_BODY, 502, 504)


def errors_of(*statuses: int) -> Responses:
    """These statuses in an operation's `responses`."""
    return {status: _described(status) for status in sorted(statuses)}


def _described(status: int) -> dict[str, Any]:
    what, _ = _EXAMPLES[status]
    told: dict[str, Any] = {"model": ErrorResponse, "description": what}
    if status in (429, 503):
        told["headers"] = _RETRY_AFTER
    return told


class DescribedApp(FastAPI):
    """Describes what is served: events of streams, headers that middleware adds, and no 422, which is never sent."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is not None:
            return self.openapi_schema
        schema = super().openapi()
        for methods in schema["paths"].values():
            for operation in methods.values():
                _correct(operation["responses"])
        for unsent in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(unsent, None)
        _, chunks = models_json_schema([(ChatChunk, "serialization")], ref_template=_REFERENCE)
        schema["components"]["schemas"] |= chunks["$defs"]
        for path, chunk in _CHUNKS.items():
            content = schema["paths"][path]["post"]["responses"]["200"]["content"]
            content["text/event-stream"]["itemSchema"] = _events_of(chunk)
        return schema


def _events_of(chunk: str) -> dict[str, Any]:
    """OpenAPI 3.2's description of a stream's events. Known errors come as one, too, once the stream has begun."""
    schemas = [{"$ref": _REFERENCE.format(model=name)} for name in (chunk, ErrorResponse.__name__)]
    data = {"contentMediaType": "application/json", "contentSchema": {"anyOf": schemas}}
    return {
        "type": "object",
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, data]}},
        "required": ["data"],
    }


def _correct(responses: dict[str, Any]) -> None:
    responses.pop("422", None)
    for status, response in responses.items():
        response["headers"] = {**response.get("headers", {}), **_HEADERS}
        if status != "200":  # only here: FastAPI would drop an example's nulls
            response["content"]["application/json"]["example"] = _EXAMPLES[int(status)][1].body
