"""Requests to an OpenAI-compatible server. What fails for a while is tried again, as `Retry-After` says or later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from w2s_core.errors import ConfigurationError, W2SError
from w2s_core.remote.faults import error_text, exceeds_context, retry_after_s

Sleep = Callable[[float], Awaitable[None]]
_ATTEMPTS = 10
_back_off = wait_random_exponential(multiplier=1, max=60)


class TooLongError(Exception):
    """A prompt does not fit the model's context."""


class _TransientError(W2SError):
    """An attempt failed, and another may succeed. `retry_after`: the seconds that the server asked for."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RetryingClient:
    """Sends requests through `http`, a client with the server as its base URL, and repeats those that 429 or a 5xx
    answered; a POST also after a failed connection."""

    def __init__(self, http: httpx.AsyncClient, sleep: Sleep = asyncio.sleep) -> None:
        self._http = http
        self._sleep = sleep

    async def get(self, path: str) -> httpx.Response:
        """The response, whatever its status. Raises ConfigurationError where the server cannot be reached."""
        response: httpx.Response = await self._retrying()(self._get, path)
        return response

    async def post(self, path: str, body: Mapping[str, Any]) -> tuple[Any, float]:
        """The response's JSON, None for one that is not JSON, and the seconds that its attempt took.

        Raises TooLongError for a prompt that exceeds the context, ConfigurationError for any other refusal, and
        W2SError where the server keeps failing.
        """
        answer: tuple[Any, float] = await self._retrying()(self._post, path, body)
        return answer

    def _retrying(self) -> AsyncRetrying:
        return AsyncRetrying(
            retry=retry_if_exception_type(_TransientError),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=_wait,
            sleep=self._sleep,
            reraise=True,
        )

    async def _get(self, path: str) -> httpx.Response:
        try:
            response = await self._http.get(path)
        except httpx.RequestError as error:
            raise ConfigurationError(f"the server at {self._http.base_url} cannot be reached: {_said(error)}") from None
        _raise_if_transient(response)
        return response

    async def _post(self, path: str, body: Mapping[str, Any]) -> tuple[Any, float]:
        start = time.perf_counter()
        try:
            response = await self._http.post(path, json=body)
        except httpx.RequestError as error:
            raise _TransientError(f"the server cannot be reached: {_said(error)}") from None
        _raise_if_transient(response)
        content = _json(response)
        if response.status_code == httpx.codes.OK:
            return content, time.perf_counter() - start
        if exceeds_context(content, error_text(content)):
            raise TooLongError(error_text(content))
        raise ConfigurationError(refusal(response))


def refusal(response: httpx.Response) -> str:
    """What an error response says, with its status."""
    message = " ".join(error_text(_json(response)).split()) or response.reason_phrase or "no message"
    return f"{message} ({response.status_code})"


def _wait(state: RetryCallState) -> float:
    """Seconds until the next attempt: the server's Retry-After, or longer."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, _TransientError) else None
    return max(asked or 0.0, _back_off(state))


def _raise_if_transient(response: httpx.Response) -> None:
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
        raise _TransientError(refusal(response), retry_after_s(response.headers))


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
