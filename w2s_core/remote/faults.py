"""What went wrong with one attempt: what the caller is told, whether another attempt may help, whom it speaks against.

Nothing that a provider sends is passed on unread: its message is shortened, put in one line and rid of our key.
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
_TOO_MANY_REQUESTS = 429
_TOO_LONG = re.compile(r"maximum context length (?:is|of) (\d+)", re.IGNORECASE)


class Fault(Exception):
    """An attempt that failed. `status`: a short label for counters. `transient`: another attempt may succeed.
    `unhealthy`: it speaks against the base_url. `retry_after_s`: what the provider asked for, unbounded."""

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
    """Turns what httpx raises and what a provider answers into faults. `name` is whose provider it is."""

    def __init__(self, name: str, model: str, api_key: str | None) -> None:
        self._who = f"The provider of `{name}`"
        self._model = model
        self._api_key = api_key

    def from_exception(self, error: Exception, timeout_s: float) -> Fault:
        """The connection failed. Nothing of `error` is quoted."""
        if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
            kind = UpstreamTimeoutError if isinstance(error, httpx.ConnectTimeout) else UpstreamError
            return _down(kind(f"{self._who} cannot be reached."), "unreachable")
        if isinstance(error, httpx.TimeoutException | TimeoutError):
            return _down(UpstreamTimeoutError(f"{self._who} did not answer within {timeout_s:g} seconds."), "timeout")
        return _down(UpstreamError(f"{self._who} broke off its answer."), "dropped")

    def malformed(self, what: str) -> Fault:
        """An answer of success that is none."""
        return _down(UpstreamError(f"{self._who} sent {what}."), "malformed")

    def too_large(self, limit: int) -> Fault:
        return Fault(UpstreamError(f"{self._who} sent an answer of more than {limit} bytes."), "too_large")

    def from_response(self, status: int, headers: Mapping[str, str], body: Any) -> Fault:
        """An answer that is no success. `body` is its parsed JSON, None if it is none."""
        message, label = self._message(body), str(status)
        if status >= 500:
            return _down(UpstreamError(f"{self._who} failed ({status}){message}"), label, retry_after_s(headers))
        if status == _TOO_MANY_REQUESTS:
            error = UpstreamError(f"{self._who} limits our calls (429){message}")
            return Fault(error, label, transient=True, retry_after_s=retry_after_s(headers))
        return Fault(self._refusal(status, message, body), label)

    def _refusal(self, status: int, message: str, body: Any) -> W2SError:
        """Asking again would not help."""
        if status in (401, 403):  # whatever it says may hold the key
            return UpstreamError(f"{self._who} refused our credentials ({status}).")
        if status < 400:
            return UpstreamError(f"{self._who} answered with status {status}: base_url may be wrong.")
        if _exceeds_context(body, message):
            return UpstreamContextLengthError(_context_sentence(self._who, message))
        if status == 404:
            unknown = f"{self._who} knows no model `{self._model}`, or base_url is wrong (404){message}"
            return UpstreamRefusedError(unknown)
        return UpstreamRefusedError(f"{self._who} refused the call ({status}){message}")

    def _message(self, body: Any) -> str:
        """`: what the provider said`, or a full stop where it said nothing that can be passed on."""
        text = _said(body)
        if self._api_key:
            text = text.replace(self._api_key, "[key]")
        text = re.sub(r"(?i)bearer\s+\S+", "[key]", text)
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        if len(text) > _MESSAGE_LENGTH:
            text = text[: _MESSAGE_LENGTH - 1] + "…"
        return f": {text}" if text else "."


def _down(error: W2SError, status: str, retry_after_s: float | None = None) -> Fault:
    return Fault(error, status, transient=True, unhealthy=True, retry_after_s=retry_after_s)


def _said(body: Any) -> str:
    """The message of an error as OpenAI, older vLLM (without `error`) and FastAPI (`detail`) shape it."""
    if not isinstance(body, dict):
        return ""
    error = body.get("error", body)
    if isinstance(error, dict):
        error = error.get("message", error.get("detail"))
    return error if isinstance(error, str) else ""


def _exceeds_context(body: Any, message: str) -> bool:
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code == "context_length_exceeded" or _TOO_LONG.search(message) is not None


def _context_sentence(who: str, message: str) -> str:
    """Begins with the words that gateways match on, where the provider told the number."""
    found = _TOO_LONG.search(message)
    limit = f"This model's maximum context length is {found[1]} tokens. " if found else ""
    return f"{limit}{who} says{message}"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """`Retry-After`, as seconds or as a date; None where it is missing or makes no sense."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d*)?", value, re.ASCII):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
