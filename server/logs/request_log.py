"""The request log: one line per request when it ends, with its id, status, model, rows, tokens and times.

Prompts, answers, headers, query strings and API keys are never logged, as they may be private; a key's name is.
`server.log_prompts` adds prompts and answers.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access.policy import Policy
from w2s_core.telemetry.request_record import RequestRecord

logger = logging.getLogger("w2s.request")
_PROBES = ("/health", "/ready", "/ping", "/metrics")  # polled every few seconds, so logged at level debug
_PAGE_FILES = "/playground/"  # twenty for each view of the page, which itself is logged
_MAX_PATH_LENGTH = 200  # characters; the rest is cut
_DECIMALS = 6  # of a time in seconds


class RequestLog:
    """Logs requests. Must be the outermost middleware.

    It sets `scope["state"]["record"]`, a RequestRecord that the engine fills in.
    """

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self.app = app
        self.policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), None
        record = RequestRecord(caller=_trace_headers(scope), keeps_texts=self.policy.config.log_prompts)
        scope.setdefault("state", {})["record"] = record

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note_status)
        finally:
            level = logging.DEBUG if _is_frequent(scope["path"], status) else logging.INFO
            total_s = round(time.perf_counter() - began, _DECIMALS)
            logger.log(level, {**_http_fields(scope, status), **_engine_fields(record), "total_s": total_s})


def _is_frequent(path: str, status: int | None) -> bool:
    return path in _PROBES or (path.startswith(_PAGE_FILES) and status in (200, 304))


def _trace_headers(scope: Scope) -> dict[str, str]:
    """The request's W3C Trace Context headers."""
    headers = Headers(scope=scope)
    return {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}


def _http_fields(scope: Scope, status: int | None) -> dict[str, Any]:
    """`status` is None when the connection ended without a response. `api_key` is the key's name, if keys are used."""
    path = scope["path"]
    state = scope["state"]
    key = {"api_key": state["api_key"]} if "api_key" in state else {}
    return {
        "message": f"{scope['method']} {path if len(path) <= _MAX_PATH_LENGTH else path[:_MAX_PATH_LENGTH] + '…'}",
        "request_id": state.get("request_id"),
        "status": status,
        **key,
    }


def _engine_fields(record: RequestRecord) -> dict[str, Any]:
    """Empty when the request did not reach the engine."""
    if record.outcome is None:
        return {}
    fields: dict[str, Any] = {
        "served_model": record.served_model,
        "method": record.method,
        "outcome": record.outcome,
        "rows": record.rows,
        "chunks": record.chunks,
        "prompt_tokens": record.prompt_tokens,
        "returned_tokens": record.returned_tokens,
        "sampled_tokens": record.sampled_tokens,
        "scored_tokens": record.scored_tokens,
        "queue_s": None if record.queue_s is None else round(record.queue_s, _DECIMALS),
        "first_token_s": None if record.first_token_s is None else round(record.first_token_s, _DECIMALS),
    }
    if record.trace_id is not None:
        fields["trace_id"] = record.trace_id
    if record.keeps_texts:
        fields |= {"prompts": [asdict(prompt) for prompt in record.prompts], "answers": record.answers}
    return fields
