"""Classifies failed attempts: the error for the caller, whether to retry, and whether the endpoint is unhealthy.

A provider's message is passed on only after it has been shortened, put in one line and stripped of our API key and of
file names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from w2s_core.errors import (
    UpstreamContextLengthError,
    UpstreamError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    W2SError,
)

_MESSAGE_LENGTH = 300  # characters of a provider's message that are passed on
_MAX_QUOTED = 10_000  # characters of it that are looked at one by one
_TOO_MANY_REQUESTS = 429
# An absolute path of several parts, which is no part of a URL and no route of this API.
_PATH = re.compile(r"(?<![\w.:/~\\])(?:~?/(?!v1/)[^\s'\"`/]+/|[A-Za-z]:\\)[^\s'\"`,;:)]*")
_TOO_LONG = re.compile(r"maximum context length (?:is|of) (\d+)", re.IGNORECASE)


class Fault(Exception):
    """A failed attempt.

    `error` is what the caller gets if it is the last one. `status`: a short label for metrics. `transient`: a retry may
    succeed. `unhealthy`: it counts against the endpoint's circuit breaker. `retry_after_s`: seconds that the provider
    asked for, unbounded.
    """

    def __init__(
        self,
        error: W2SError,
        status: str,
        *,
        transient: bool = False,
        unhealthy: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(status)
        self.error = error
        self.status = status
        self.transient = transient
        self.unhealthy = unhealthy
        self.retry_after_s = retry_after_s


class FaultClassifier:
    """Turns httpx's exceptions and a provider's error responses into faults.

    `name` is the model's in the configuration, `model` the provider's name for it, which messages have unless it is a
    path.
    """

    def __init__(self, name: str, model: str, api_key: str | None) -> None:
        self._provider = f"The provider of `{name}`"
        self._model = model
        self._shown_model = name if model.startswith("/") else model
        self._api_key = api_key

    def from_exception(self, error: Exception, timeout_s: float) -> Fault:
        """Classifies a failed connection. Nothing of `error` is quoted, because it may hold our key."""
        if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
            error_type = UpstreamTimeoutError if isinstance(error, httpx.ConnectTimeout) else UpstreamError
            return _unhealthy(error_type(f"{self._provider} cannot be reached."), "unreachable")
        if isinstance(error, httpx.TimeoutException | TimeoutError):
            return _unhealthy(
                UpstreamTimeoutError(f"{self._provider} did not answer within {timeout_s:.3g} seconds."), "timeout"
            )
        if isinstance(error, httpx.DecodingError):
            return self.malformed("a response that cannot be decoded")
        if isinstance(error, httpx.InvalidURL):  # httpx reads the target of a redirect, although it follows none
            return Fault(UpstreamError(f"{self._provider} answered with a redirect; check base_url."), "redirect")
        return self.dropped()

    def dropped(self) -> Fault:
        """Classifies a response that ended before it was complete."""
        return _unhealthy(
            UpstreamError(f"{self._provider} closed the connection before its response was complete."), "dropped"
        )

    def malformed(self, description: str) -> Fault:
        """Classifies a response of status 200 that cannot be used; `description` completes "sent …"."""
        return _unhealthy(UpstreamError(f"{self._provider} sent {description}."), "malformed")

    def unusable(self, error: UpstreamError) -> Fault:
        """Classifies a well-formed response whose content `error` rejects, which a retry would not change."""
        return Fault(error, "malformed")

    def too_large(self, limit: int) -> Fault:
        """Classifies a response of more than `limit` bytes; a retry would be as large."""
        return Fault(UpstreamError(f"{self._provider} sent a response of more than {limit} bytes."), "too_large")

    def from_response(self, status: int, headers: Mapping[str, str], body: Any) -> Fault:
        """Classifies an error response. `body` is its parsed JSON, None where it is not JSON."""
        message, label = self._message(body), str(status)
        if status >= 500:
            return _unhealthy(
                UpstreamError(f"{self._provider} failed ({status}){message}"), label, retry_after_s(headers)
            )
        if status == _TOO_MANY_REQUESTS:
            error = UpstreamError(f"{self._provider} rate-limits this server (429){message}")
            return Fault(error, label, transient=True, retry_after_s=retry_after_s(headers))
        return Fault(self._refusal(status, message, body), label)

    def _refusal(self, status: int, message: str, body: Any) -> W2SError:
        """The error of a response that a retry would not change."""
        if status in (401, 403):  # its message may quote the key
            return UpstreamError(f"{self._provider} rejected our credentials ({status}).")
        if status < 400:
            return UpstreamError(f"{self._provider} answered with status {status}; check base_url.")
        if exceeds_context(body, message):
            return UpstreamContextLengthError(_context_message(self._provider, message))
        if status == 404:
            return UpstreamRefusedError(
                f"{self._provider} has no model `{self._shown_model}`, or base_url is wrong (404){message}"
            )
        return UpstreamRefusedError(f"{self._provider} rejected the call ({status}){message}")

    def _message(self, body: Any) -> str:
        """Returns `: ` and the provider's message, made safe; a full stop where there is none."""
        text = error_text(body)
        if self._api_key:
            text = text.replace(self._api_key, "[key]")
        text = re.sub(r"(?i)bearer\s+\S+", "[key]", text)[:_MAX_QUOTED]
        text = _PATH.sub("[path]", text.replace(self._model, self._shown_model))
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        if len(text) > _MESSAGE_LENGTH:
            text = text[: _MESSAGE_LENGTH - 1] + "…"
        return f": {text}" if text else "."


def _unhealthy(error: W2SError, status: str, retry_after_s: float | None = None) -> Fault:
    return Fault(error, status, transient=True, unhealthy=True, retry_after_s=retry_after_s)


def error_text(body: Any) -> str:
    """The message of an error in the shape of OpenAI, older vLLM (without `error`) or FastAPI (`detail`)."""
    if not isinstance(body, dict):
        return ""
    error = body.get("error", body)
    if isinstance(error, dict):
        error = error.get("message", error.get("detail"))
    return error if isinstance(error, str) else ""


def exceeds_context(body: Any, message: str) -> bool:
    """Whether an error response says that prompt and answer exceed the model's context."""
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code == "context_length_exceeded" or _TOO_LONG.search(message) is not None


def _context_message(provider: str, message: str) -> str:
    """Begins with the sentence that gateways match on, where the provider's message has the number."""
    match = _TOO_LONG.search(message)
    limit = f"This model's maximum context length is {match[1]} tokens. " if match else ""
    return f"{limit}{provider} says{message}"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Parses `Retry-After`, given as seconds or as a date; None where it is missing or invalid."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d*)?", value, re.ASCII):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):  # no date, or one that does not fit a datetime
        return None
