"""`POST /v1/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.routes.answering import STREAM, answer
from server.schemas.completions import Completion, CompletionBody
from server.shapes import CompletionShape

router = APIRouter()


@router.post("/v1/completions", response_model=Completion, responses={200: {"content": STREAM}})
async def create_completion(body: CompletionBody, request: Request) -> Response:
    """Continue a prompt, or each of several; with `stream` as server-sent events of the same shape."""
    return await answer(request, body, CompletionShape(body.details))
