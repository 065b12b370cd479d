"""One HTTP exchange with a provider: sends the request, reads the response within bounds, parses JSON strictly."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, NoReturn

import httpx

from w2s_core.remote.faults import FaultClassifier

MAX_ANSWER_BYTES = 64 * 2**20


class Exchange:
    """Sends requests over `client`. `timeout_s` bounds an exchange from its first to its last byte."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        classifier: FaultClassifier,
        timeout_s: float,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self._client = client
        self._classifier = classifier
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes

    async def __call__(self, method: str, url: str, content: bytes | None) -> dict[str, Any]:
        """Returns the JSON object of a successful response. Raises Fault. Cancelling closes the connection."""
        try:
            async with asyncio.timeout(self._timeout_s):
                status, headers, body = await self._read(method, url, content)
        except (httpx.RequestError, httpx.StreamError, TimeoutError) as error:
            raise self._classifier.from_exception(error, self._timeout_s) from None
        return self._parse_response(status, headers, body)

    async def _read(self, method: str, url: str, content: bytes | None) -> tuple[int, httpx.Headers, bytes]:
        async with self._client.stream(method, url, content=content) as response:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > self._max_bytes:
                    raise self._classifier.too_large(self._max_bytes)
            return response.status_code, response.headers, bytes(body)

    def _parse_response(self, status: int, headers: httpx.Headers, body: bytes) -> dict[str, Any]:
        try:
            answer = parse(body)
        except ValueError as error:
            if status != httpx.codes.OK:
                raise self._classifier.from_response(status, headers, None) from None
            raise self._classifier.malformed(f"a response that is not JSON ({error})") from None
        if status != httpx.codes.OK:
            raise self._classifier.from_response(status, headers, answer)
        if not isinstance(answer, dict):
            raise self._classifier.malformed("a response that is not a JSON object")
        if answer.get("error"):  # some gateways report failures with status 200
            raise self._classifier.from_response(_status_of(answer["error"]), headers, answer)
        return answer


def parse(body: bytes) -> Any:
    """Parses JSON in UTF-8 strictly: no NaN, no Infinity, no number too large for a float.

    Raises ValueError, whose text quotes nothing of the body.
    """
    try:
        return json.loads(body.decode(), parse_constant=_reject_constant, parse_float=_finite)
    except _NotFiniteError:
        raise
    except (ValueError, RecursionError):
        raise ValueError("it is cut off or garbled") from None


class _NotFiniteError(ValueError):
    pass


def _reject_constant(_: str) -> NoReturn:
    raise _NotFiniteError("it contains NaN or Infinity")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _NotFiniteError("it contains a number out of bounds")
    return number


def _status_of(error: Any) -> int:
    """The HTTP status in an error's `code`; 502 where it has none."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code <= 599 else 502
