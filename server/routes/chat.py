"""`POST /v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.routes.answering import STREAM, answer
from server.schemas.chat import ChatBody, ChatCompletion
from server.shapes import ChatShape

router = APIRouter()


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses={200: {"content": STREAM}})
async def create_chat_completion(body: ChatBody, request: Request) -> Response:
    """Answer a conversation; with `stream` as server-sent events of `chat.completion.chunk`."""
    return await answer(request, body, ChatShape(body.details))
