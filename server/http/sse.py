"""Server-sent events as OpenAI sends them: `data: {json}` per chunk, at the end `data: [DONE]`.

FastAPI's own event streams send the 200 before the first event, and stop noticing a departed client while nothing is
being sent; so this keeps its wire format and its media type, and replaces how the events are driven.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from server.errors import describe, encode
from server.http.disconnect import unless_disconnected
from w2s_core.errors import ShuttingDownError

DONE = format_sse_event(data_str="[DONE]")
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies must pass on every event at once


class EventStream(EventSourceResponse):
    """Streams `chunks`, a generator that it alone drives and closes, within one task.

    The first chunk is awaited before the 200 is sent, so an early failure keeps its status. A late one is an error
    event followed by `[DONE]`. A client that leaves cancels the generator, even while nothing is being sent.
    """

    def __init__(self, chunks: AsyncGenerator[BaseModel, None], request_id: str) -> None:
        super().__init__((), headers=HEADERS)  # what is sent, `_answer` sends
        self._chunks = chunks
        self._request_id = request_id
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            await unless_disconnected(receive, self._answer(send))
        except ClientDisconnect:
            if not self._started:  # else there is nobody to tell, and nothing to answer any more
                raise
        except asyncio.CancelledError:  # the time to drain is over
            if self._started:
                await self._send(send, error_event(ShuttingDownError(), self._request_id) + DONE, more=False)
            raise

    async def _answer(self, send: Send) -> None:
        async with aclosing(self._chunks) as chunks:
            first = await anext(chunks)
            self._started = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send(send, event(first))
            async for frame in self._rest(chunks):
                await self._send(send, frame)
            await self._send(send, DONE, more=False)

    async def _rest(self, chunks: AsyncIterator[BaseModel]) -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield event(chunk)
        except Exception as error:  # whatever it is, the client hears of it
            yield error_event(error, self._request_id)

    @staticmethod
    async def _send(send: Send, body: bytes, *, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": more})


def event(chunk: BaseModel) -> bytes:
    """One chunk on the wire."""
    return format_sse_event(data_str=chunk.model_dump_json(exclude_unset=True))


def error_event(error: Exception, request_id: str) -> bytes:
    """A failure after the 200."""
    return format_sse_event(data_str=encode(describe(error, request_id)))
