"""One line for every request, when it is over: its id, what it asked of whom, what it cost and how it ended.

Never a prompt, an answer, a header, a query or a key, only its name: those may hold what is private.
`server.log_prompts` adds the first two.
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
_PROBES = ("/health", "/ready", "/metrics")  # asked every few seconds: their lines are for debugging only
_PATH_LENGTH = 200  # characters of a path that are worth a line
_DIGITS = 6  # of a time in seconds


class RequestLog:
    """Sets `scope["state"]["record"]`, for the engine to write; must be around whatever answers."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self.app = app
        self.policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), None
        record = RequestRecord(caller=_caller(scope), keeps_texts=self.policy.config.log_prompts)
        scope.setdefault("state", {})["record"] = record

        async def watching(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watching)
        finally:
            level = logging.DEBUG if scope["path"] in _PROBES else logging.INFO
            total_s = round(time.perf_counter() - began, _DIGITS)
            logger.log(level, {**_of_http(scope, status), **_of_engine(record), "total_s": total_s})


def _caller(scope: Scope) -> dict[str, str]:
    """The headers by which a caller names its own trace (W3C)."""
    headers = Headers(scope=scope)
    return {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}


def _of_http(scope: Scope, status: int | None) -> dict[str, Any]:
    """`status` None: the connection ended without an answer. `api_key`: whose, where there are keys."""
    path = scope["path"]
    state = scope["state"]
    key = {"api_key": state["api_key"]} if "api_key" in state else {}
    return {
        "message": f"{scope['method']} {path if len(path) <= _PATH_LENGTH else path[:_PATH_LENGTH] + '…'}",
        "request_id": state.get("request_id"),
        "status": status,
        **key,
    }


def _of_engine(record: RequestRecord) -> dict[str, Any]:
    """Nothing where no engine was asked."""
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
        "queue_s": None if record.queue_s is None else round(record.queue_s, _DIGITS),
        "first_token_s": None if record.first_token_s is None else round(record.first_token_s, _DIGITS),
    }
    if record.trace_id is not None:
        fields["trace_id"] = record.trace_id
    if record.keeps_texts:
        fields |= {"prompts": [asdict(prompt) for prompt in record.prompts], "answers": record.answers}
    return fields
