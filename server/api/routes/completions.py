"""`POST /v1/completions`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from server.access.auth import GuardedRoute
from server.api.response_builders import CompletionBuilder
from server.api.routes.generation import answer
from server.api.schemas import examples
from server.api.schemas.completions import Completion, CompletionBody

router = APIRouter(route_class=GuardedRoute)


@router.post("/v1/completions", response_model=Completion, responses=examples.COMPLETION_ANSWER)
async def create_completion(
    body: Annotated[CompletionBody, Body(openapi_examples=examples.COMPLETION)], request: Request
) -> Response:
    """Continue a prompt, or each of several; with `stream` as server-sent events of the same shape."""
    return await answer(request, body, CompletionBuilder(body.details))
