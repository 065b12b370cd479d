"""`POST /v1/completions`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from server.access.auth import AuthenticatedRoute
from server.api.response_builders import CompletionBuilder
from server.api.routes.generation import generate
from server.api.schemas import examples
from server.api.schemas.completions import Completion, CompletionBody

router = APIRouter(route_class=AuthenticatedRoute)


@router.post("/v1/completions", response_model=Completion, responses=examples.COMPLETION_ANSWER)
async def create_completion(
    body: Annotated[CompletionBody, Body(openapi_examples=examples.COMPLETION)], request: Request
) -> Response:
    """Continues one or several prompts. With `stream`, sends server-sent events with objects of the same format."""
    return await generate(request, body, CompletionBuilder(body.output_options))
