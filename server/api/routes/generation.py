"""From a validated body to the response, streamed or not: the same way for completions and chat."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from fastapi import Request
from fastapi.responses import Response

from server.api.answers import Chunks, Envelope, whole_answer
from server.api.response_builders import ResponseBuilder
from server.api.schemas.base import StreamOptions
from server.api.schemas.chat import ChatBody
from server.api.schemas.completions import CompletionBody
from server.api.schemas.responses import Answer
from server.engine_host import EngineHost
from server.errors import request_id_of
from server.http.disconnect import unless_disconnected
from server.http.sse import EventStream
from w2s_core.engine.events import Event
from w2s_core.errors import UnknownModelError
from w2s_core.telemetry.request_record import RequestRecord
from w2s_core.types import GenerationRequest


def host_of(request: Request) -> EngineHost:
    """The application's engine host."""
    host: EngineHost = request.app.state.host
    return host


async def require_engine(request: Request) -> None:
    """Refuses a request before its body is looked at while there is no engine. Raises UnavailableError."""
    _ = host_of(request).engine


async def answer(
    request: Request,
    body: CompletionBody | ChatBody,
    shape: ResponseBuilder,
    adjusted: Callable[[GenerationRequest], GenerationRequest] = lambda asked: asked,
) -> Response:
    """Run the search and answer; `adjusted` is what the engine is asked for.

    Raises the engine's errors when it fails before the first event."""
    engine = host_of(request).engine
    served = engine.served_models.get(body.model)
    if served is None:
        raise UnknownModelError(body.model)
    asked = adjusted(body.to_request(served.guidance))
    envelope = Envelope.new(shape.id_prefix, body.model)
    record: RequestRecord = request.state.record
    if body.stream:
        chunks = Chunks(shape, envelope, body.stream_options or StreamOptions(), asked.n * len(asked.prompts))
        return EventStream(_stream(engine.generate(asked, record), chunks), request_id_of(request))
    whole = await unless_disconnected(request.receive, _collect(engine.generate(asked, record), shape, envelope))
    return Response(whole.model_dump_json(exclude_unset=True), media_type="application/json")


async def _collect(answering: AsyncGenerator[Event], shape: ResponseBuilder, envelope: Envelope) -> Answer:
    async with aclosing(answering) as events:
        return await whole_answer(events, shape, envelope)


async def _stream(answering: AsyncGenerator[Event], chunks: Chunks) -> AsyncGenerator[Answer, None]:
    async with aclosing(answering) as events:
        async for chunk in chunks.of(events):
            yield chunk
