"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from server.access.auth import GuardedRoute
from server.api.response_builders import ChatBuilder
from server.api.routes.generation import answer, host_of
from server.api.schemas import examples
from server.api.schemas.chat import ChatBody, ChatCompletion
from server.api.tool_calls import ToolChatBuilder, calling_of

router = APIRouter(route_class=GuardedRoute)


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=examples.CHAT_ANSWER)
async def create_chat_completion(
    body: Annotated[ChatBody, Body(openapi_examples=examples.CHAT)], request: Request
) -> Response:
    """Answer a conversation; with `stream` as server-sent events of `chat.completion.chunk`."""
    if not body.offered:
        return await answer(request, body, ChatBuilder(body.details))
    calling = calling_of(host_of(request).engine, body)
    return await answer(request, body, ToolChatBuilder(body.details, calling), calling.adjusted)
