"""The ASGI application: routes, middleware, error handlers, and the engine's life."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI, Security
from starlette.middleware.cors import CORSMiddleware

from server import errors
from server.access.auth import bearer
from server.access.limits import LeaseMiddleware
from server.access.policy import Policy
from server.api.openapi import ANYWHERE, GENERATING, WITH_A_BODY, DescribedApp, errors_of
from server.api.routes import chat, completions, health, metrics, models, tokenizing
from server.api.routes.generation import require_engine
from server.engine_host import EngineHost
from server.http.middleware import AdminPort, BodyLimit, HeadLimit, RequestContext
from server.logs.request_log import RequestLog
from server.settings.config import ServerConfig

VERSION = version("w2s-server")
TITLE = "w2s"
DESCRIPTION = "OpenAI-compatible server for weak-to-strong search: alignment at test time (arXiv:2405.19262)."


def create_app(host: EngineHost, config: ServerConfig | None = None) -> FastAPI:
    """Loading starts with the application's lifespan; until it is done, API calls are answered 503. What may change
    later is asked of `app.state.policy`. Raises ConfigurationError where keys cannot be read."""
    config = config or ServerConfig()
    policy = Policy(config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with host.running():
            yield

    app = DescribedApp(title=TITLE, description=DESCRIPTION, version=VERSION, lifespan=lifespan, redirect_slashes=False)
    app.state.host = host
    app.state.policy = policy
    app.state.created = int(time.time())
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, policy=policy)
    app.add_middleware(LeaseMiddleware)
    app.add_middleware(HeadLimit, policy=policy)
    if config.admin_port is not None:
        app.add_middleware(AdminPort, port=config.admin_port)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "openai-processing-ms", "retry-after"],
        )
    app.add_middleware(RequestContext, leaving=lambda: host.draining)
    app.add_middleware(RequestLog, policy=policy)
    errors.install(app)
    for operations in (health.router, metrics.router):
        app.include_router(operations, tags=["operations"])
    guards = [Security(bearer), Depends(require_engine)]
    for router, tag, statuses in (
        (completions.router, "OpenAI", GENERATING),
        (chat.router, "OpenAI", GENERATING),
        (models.router, "OpenAI", ANYWHERE),
        (tokenizing.router, "tokens", WITH_A_BODY),
    ):
        app.include_router(router, tags=[tag], dependencies=guards, responses=errors_of(*statuses))
    return app
