"""Server-sent events and [DONE]: `data: {json}` per chunk and `data: [DONE]` at the end, as OpenAI streams them.

FastAPI's event streams send the 200 before the first event, and do not notice a disconnect while nothing is being
sent. This module keeps their encoding and media type and replaces how the events are driven.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from server.errors import error_json, to_error_info
from server.http.disconnect import cancel_on_disconnect
from w2s_core.errors import ShuttingDownError

DONE = format_sse_event(data_str="[DONE]")
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies must pass on every event at once


class EventStream(EventSourceResponse):
    """A streaming response of `chunks`, a generator that it alone drives and closes, within one task.

    The first chunk is awaited before the 200 is sent, so an early error keeps its status. A later error is sent as an
    event `{"error": ...}`, followed by `[DONE]`. A disconnect cancels the generator, even while nothing is being sent.
    """

    def __init__(self, chunks: AsyncGenerator[BaseModel, None], request_id: str) -> None:
        super().__init__((), headers=HEADERS)  # `_stream` sends the content
        self._chunks = chunks
        self._request_id = request_id
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            await cancel_on_disconnect(receive, self._stream(send))
        except ClientDisconnect:
            if not self._started:  # once it has started, there is nobody left to answer
                raise
        except asyncio.CancelledError:  # `server.drain_timeout_s` has passed
            if self._started:
                await self._send(send, encode_error(ShuttingDownError(), self._request_id) + DONE, more=False)
            raise

    async def _stream(self, send: Send) -> None:
        async with aclosing(self._chunks) as chunks:
            first = await anext(chunks)
            self._started = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send(send, encode_chunk(first))
            async for event in self._remaining_events(chunks):
                await self._send(send, event)
            await self._send(send, DONE, more=False)

    async def _remaining_events(self, chunks: AsyncIterator[BaseModel]) -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield encode_chunk(chunk)
        except Exception as error:  # any error: the status is sent, so the client can learn of it only here
            yield encode_error(error, self._request_id)

    @staticmethod
    async def _send(send: Send, body: bytes, *, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": more})


def encode_chunk(chunk: BaseModel) -> bytes:
    """One chunk as a server-sent event; fields that were not set are left out."""
    return format_sse_event(data_str=chunk.model_dump_json(exclude_unset=True))


def encode_error(error: Exception, request_id: str) -> bytes:
    """An error after the 200 as a server-sent event."""
    return format_sse_event(data_str=error_json(to_error_info(error, request_id)))
