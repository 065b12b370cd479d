"""One HTTP exchange with a provider: sends the request, reads the response within bounds, parses JSON strictly."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import Any, NoReturn

import httpx

from w2s_core.errors import UpstreamError
from w2s_core.remote.faults import Fault, FaultClassifier

MAX_ANSWER_BYTES = 64 * 2**20
_ENCODINGS = ("", "identity", "gzip", "deflate")  # none is asked for; others, and several, have no bound when decoded
_END_OF_STREAM = b"[DONE]"
_MAX_DRAIN_S = 1.0  # how long the end of a response is awaited behind [DONE], so that the connection can be kept


class Exchange:
    """Sends requests over `client`.

    The methods' `timeout_s` bounds an exchange from its first to its last byte. All of them raise Fault. Cancelling one
    closes its connection.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        classifier: FaultClassifier,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self._client = client
        self._classifier = classifier
        self._max_bytes = max_bytes

    async def __call__(self, method: str, url: str, content: bytes | None, timeout_s: float) -> dict[str, Any]:
        """Returns the JSON object of a successful response."""
        async with self._response(method, url, content, timeout_s) as response:
            body = await self._read(response, self._max_bytes)
        return self._parse_response(response, body)

    async def stream(
        self, url: str, content: bytes, feed: Callable[[dict[str, Any]], None], timeout_s: float, more_bytes: int
    ) -> None:
        """Posts, and calls `feed` with each JSON object of a successful response, which is a stream of events.

        A response that is no stream is one object. `feed` may raise UpstreamError. The response may have `more_bytes`
        bytes more than one that is not streamed.
        """
        limit = self._max_bytes + more_bytes
        async with self._response("POST", url, content, timeout_s) as response:
            if response.status_code == httpx.codes.OK and _is_event_stream(response):
                await self._read_events(response, feed, limit)
                return
            body = await self._read(response, limit)
        with self._reader_faults():
            feed(self._parse_response(response, body))

    @asynccontextmanager
    async def _response(
        self, method: str, url: str, content: bytes | None, timeout_s: float
    ) -> AsyncIterator[httpx.Response]:
        try:
            async with asyncio.timeout(timeout_s), self._client.stream(method, url, content=content) as response:
                yield response
        except (httpx.RequestError, httpx.StreamError, httpx.InvalidURL, TimeoutError) as error:
            raise self._classifier.from_exception(error, timeout_s) from None

    async def _read(self, response: httpx.Response, limit: int) -> bytes:
        body = bytearray()
        async with aclosing(self._parts(response, limit)) as parts:
            async for part in parts:
                body += part
        return bytes(body)

    async def _parts(self, response: httpx.Response, limit: int) -> AsyncGenerator[bytes]:
        """The decoded body as it arrives, at most `limit` bytes."""
        if response.headers.get("content-encoding", "").strip().lower() not in _ENCODINGS:
            if response.status_code == httpx.codes.OK:
                raise self._classifier.malformed("a response in an encoding that was not asked for")
            return  # an error's status says enough
        size = 0
        async for part in response.aiter_bytes():
            size += len(part)
            if size > limit:
                raise self._classifier.too_large(limit)
            yield part

    async def _read_events(self, response: httpx.Response, feed: Callable[[dict[str, Any]], None], limit: int) -> None:
        """Feeds the data of server-sent events, each in one line, as OpenAI and vLLM write them."""
        line = bytearray()
        async with aclosing(self._parts(response, limit)) as parts:
            async for part in parts:
                *complete, rest = part.split(b"\n")
                for end in complete:
                    line += end
                    data = bytes(line[5:]).strip() if line.startswith(b"data:") else b""
                    line.clear()
                    if data == _END_OF_STREAM:
                        await _drain(parts)
                        return
                    if data:
                        with self._reader_faults():
                            feed(self._parse_object(response, data))
                line += rest
        raise self._classifier.dropped()

    @contextmanager
    def _reader_faults(self) -> Iterator[None]:
        try:
            yield
        except UpstreamError as error:
            raise self._classifier.unusable(error) from None

    def _parse_response(self, response: httpx.Response, body: bytes) -> dict[str, Any]:
        status = response.status_code
        if status == httpx.codes.OK:
            return self._parse_object(response, body)
        try:
            answer = parse(body)
        except ValueError:
            answer = None
        raise self._classifier.from_response(status, response.headers, answer)

    def _parse_object(self, response: httpx.Response, body: bytes) -> dict[str, Any]:
        try:
            answer = parse(body)
        except ValueError as error:
            raise self._classifier.malformed(f"a response that is not JSON ({error})") from None
        if not isinstance(answer, dict):
            raise self._classifier.malformed("a response that is not a JSON object")
        if answer.get("error"):  # some gateways report failures with status 200
            raise self._classifier.from_response(_status_of(answer["error"]), response.headers, answer)
        if _is_aborted(answer.get("choices")):
            raise self._classifier.dropped()
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


async def _drain(parts: AsyncIterator[bytes]) -> None:
    """Reads a response to its end if that comes soon; whether it does matters to nobody."""
    with suppress(TimeoutError, httpx.RequestError, httpx.StreamError, Fault):
        async with asyncio.timeout(_MAX_DRAIN_S):
            async for _ in parts:
                pass


def _is_event_stream(response: httpx.Response) -> bool:
    return str(response.headers.get("content-type", "")).strip().lower().startswith("text/event-stream")


def _is_aborted(choices: Any) -> bool:
    """Whether a choice was given up, as vLLM and SGLang do when they are stopped. It may have any number of tokens."""
    parts = choices if isinstance(choices, list) else []
    return any(isinstance(part, dict) and part.get("finish_reason") == "abort" for part in parts)


def _status_of(error: Any) -> int:
    """The HTTP status in an error's `code`; 502 where it has none."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code <= 599 else 502
