"""`GET /health`: the process is alive. `GET /ready`: a request would be served now. `GET /version`. No keys."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request

from server.api.openapi import errors_of
from server.api.routes.generation import host_of
from server.api.schemas import examples
from w2s_core.errors import UnavailableError

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, str]:
    """Always 200: for a liveness probe."""
    return {"status": "ok"}


@router.get("/ready", responses=errors_of(503))
async def ready(request: Request) -> dict[str, str]:
    """200, or 503 while the models load, when no worker is alive and once the server drains: for a load balancer."""
    host = host_of(request)
    _ = host.engine  # says why there is none
    if not host.ready:
        raise UnavailableError("No worker is alive at the moment.", retry_after_s=5)
    return {"status": "ready"}


@router.get("/version", responses=examples.VERSION)
async def tell_version(request: Request) -> dict[str, str]:
    """This software's version, in vLLM's shape."""
    app: FastAPI = request.app
    return {"version": app.version}
