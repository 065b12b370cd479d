"""`GET /metrics`, for Prometheus. It needs no API key: metrics contain configured names, no prompts and no secrets."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from server.api.routes.generation import host_of
from w2s_core.telemetry.metrics import CONTENT_TYPE

router = APIRouter()


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> PlainTextResponse:
    """All metrics, in Prometheus' text format."""
    return PlainTextResponse(host_of(request).metrics.render(), headers={"content-type": CONTENT_TYPE})
