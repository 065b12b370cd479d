"""What the generating endpoints share: from a validated body to the response, complete or streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from fastapi import Request
from fastapi.responses import Response

from server.api.answers import ChunkStream, ResponseMetadata, full_response
from server.api.response_builders import ResponseBuilder
from server.api.schemas.base import StreamOptions
from server.api.schemas.chat import ChatBody
from server.api.schemas.completions import CompletionBody
from server.api.schemas.responses import ResponseBody
from server.engine_host import EngineHost
from server.errors import request_id_of
from server.http.disconnect import cancel_on_disconnect
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
    """A dependency that raises UnavailableError before the body is validated while no engine serves."""
    _ = host_of(request).engine


async def generate(
    request: Request,
    body: CompletionBody | ChatBody,
    builder: ResponseBuilder,
    adjust: Callable[[GenerationRequest], GenerationRequest] = lambda generation_request: generation_request,
) -> Response:
    """Generates the response to `body`. `adjust` may change the engine's request before it runs.

    Raises the engine's errors if it fails before its first event; a stream sends later ones as events.
    """
    engine = host_of(request).engine
    served = engine.served_models.get(body.model)
    if served is None:
        raise UnknownModelError(body.model)
    generation_request = adjust(body.to_request(served))
    metadata = ResponseMetadata.new(builder.id_prefix, body.model, request.app.state.system_fingerprint)
    record: RequestRecord = request.state.record
    events = engine.generate(generation_request, record)
    if body.stream:
        choices = generation_request.n * len(generation_request.prompts)
        stream = ChunkStream(builder, metadata, body.stream_options or StreamOptions(), choices)
        return EventStream(_stream(events, stream), request_id_of(request))
    response = await cancel_on_disconnect(request.receive, _collect(events, builder, metadata))
    return Response(response.model_dump_json(exclude_unset=True), media_type="application/json")


async def _collect(
    generation: AsyncGenerator[Event], builder: ResponseBuilder, metadata: ResponseMetadata
) -> ResponseBody:
    async with aclosing(generation) as events:
        return await full_response(events, builder, metadata)


async def _stream(generation: AsyncGenerator[Event], stream: ChunkStream) -> AsyncGenerator[ResponseBody, None]:
    async with aclosing(generation) as events:
        async for chunk in stream.chunks(events):
            yield chunk
