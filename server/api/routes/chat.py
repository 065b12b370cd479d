"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from server.access.auth import AuthenticatedRoute
from server.api.response_builders import ChatBuilder
from server.api.routes.generation import generate, host_of
from server.api.schemas import examples
from server.api.schemas.chat import ChatBody, ChatCompletion
from server.api.tool_calls import ToolChatBuilder, tool_call_settings

router = APIRouter(route_class=AuthenticatedRoute)


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=examples.CHAT_ANSWER)
async def create_chat_completion(
    body: Annotated[ChatBody, Body(openapi_examples=examples.CHAT)], request: Request
) -> Response:
    """Answers a conversation. With `stream`, sends server-sent events with `chat.completion.chunk` objects."""
    if not body.offered_tools:
        return await generate(request, body, ChatBuilder(body.output_options))
    settings = tool_call_settings(host_of(request).engine, body)
    return await generate(request, body, ToolChatBuilder(body.output_options, settings), settings.apply_to)
