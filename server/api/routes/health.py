"""`GET /health` (liveness), `GET /ready` and `GET /ping` (readiness), `GET /version` and `GET /`. None needs a key."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel

from server.access.policy import Policy
from server.api.openapi import error_responses
from server.api.routes.generation import host_of
from server.api.schemas import examples
from w2s_core.errors import UnavailableError

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, str]:
    """Answers 200 as long as the process lives, for a liveness probe."""
    return {"status": "ok"}


@router.get("/ready", responses=error_responses(503))
async def ready(request: Request) -> dict[str, str]:
    """Answers 200 if a request would be served now, for a load balancer.

    Answers 503 while the models load, while a worker is not alive or a provider has not been reached, and while the
    server shuts down.
    """
    host = host_of(request)
    _ = host.engine  # raises an error with the reason
    if not host.ready:
        raise UnavailableError("A worker is not alive, or a provider has not been reached.", retry_after_s=5)
    return {"status": "ready"}


@router.get("/ping", responses=error_responses(503))
async def ping(request: Request) -> dict[str, str]:
    """Answers as `/ready`: the name that SageMaker and others expect."""
    return await ready(request)


@router.get("/version", responses=examples.VERSION)
async def get_version(request: Request) -> dict[str, str]:
    """The server's version, in vLLM's format."""
    app: FastAPI = request.app
    return {"version": app.version}


class About(BaseModel):
    """The server's name and version, and the paths of what a visitor may look for."""

    name: str
    version: str
    links: dict[str, str]


@router.get("/", responses=examples.ABOUT)
async def about(request: Request) -> About:
    """Names the server and where its documentation, models and probes are."""
    app: FastAPI = request.app
    policy: Policy = app.state.policy
    paths = ["/docs", "/openapi.json", "/v1/models", "/health", "/ready", "/version"]
    if policy.config.playground:
        paths.insert(0, "/playground")
    if policy.config.admin_port is None:  # else it is served there only
        paths.append("/metrics")
    return About(name=app.title, version=app.version, links={path.split("/")[-1]: path for path in paths})
