"""The FastAPI application: routes, middleware, error handlers, and the lifespan that runs the engine."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI, Security

from server.access.auth import api_key_header, bearer
from server.access.limits import LeaseMiddleware
from server.access.policy import Policy
from server.api.openapi import BODY_ERRORS, COMMON_ERRORS, GENERATION_ERRORS, DocumentedApp, error_responses
from server.api.routes import chat, completions, documentation, health, metrics, models, tokenizing
from server.api.routes.generation import require_engine
from server.engine_host import EngineHost
from server.errors import add_exception_handlers
from server.http.compression import BodyDecompression
from server.http.cors import JsonCORSMiddleware
from server.http.middleware import AdminPortFilter, BodyLimit, HeaderLimit, HeadRequests, RequestContext
from server.logs.request_log import RequestLog
from server.playground.routes import mount_playground
from server.settings.config import ServerConfig

VERSION = version("w2s-server")
TITLE = "w2s"
DESCRIPTION = "An OpenAI-compatible server for weak-to-strong search: alignment at test time (arXiv:2405.19262)."


def system_fingerprint(configuration: str | None = None) -> str:
    """The `system_fingerprint` of responses: the server's version and, if known, the hash of its configuration."""
    return "-".join(filter(None, (TITLE, VERSION, configuration)))


def create_app(host: EngineHost, config: ServerConfig | None = None, fingerprint: str | None = None) -> FastAPI:
    """Builds the application around `host`. `fingerprint` is the hash of the engine's configuration.

    Models start to load when the lifespan begins; until they are loaded, API calls are answered 503. Limits and keys
    that a reload may change are read from `app.state.policy`. Raises ConfigurationError when keys cannot be read.
    """
    config = config or ServerConfig()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with host.running():
            yield

    app = DocumentedApp(
        title=TITLE,
        description=DESCRIPTION,
        version=VERSION,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # see `routes/documentation.py`
        redoc_url=None,
    )
    app.state.host = host
    app.state.policy = Policy(config)
    app.state.created = int(time.time())
    app.state.system_fingerprint = system_fingerprint(fingerprint)
    _add_middleware(app, host, config)
    add_exception_handlers(app)
    _add_routes(app)
    return app


def _add_middleware(app: FastAPI, host: EngineHost, config: ServerConfig) -> None:
    """Adds the middleware from the innermost to the outermost: the one added last runs first."""
    policy: Policy = app.state.policy
    app.add_middleware(HeadRequests)
    app.add_middleware(BodyDecompression, policy=policy)
    app.add_middleware(BodyLimit, policy=policy)
    app.add_middleware(LeaseMiddleware)
    app.add_middleware(HeaderLimit, policy=policy)
    if config.admin_port is not None:
        app.add_middleware(AdminPortFilter, port=config.admin_port)
    if config.cors_origins:
        app.add_middleware(
            JsonCORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "openai-processing-ms", "retry-after"],
        )
    app.add_middleware(RequestContext, draining=lambda: host.draining)
    app.add_middleware(RequestLog, policy=policy)


def _add_routes(app: FastAPI) -> None:
    """Adds the operations' routes, which need no API key, and the API's, which need a key and a loaded engine."""
    documentation.mount_assets(app)
    for router in (health.router, metrics.router, documentation.router):
        app.include_router(router, tags=["operations"])
    mount_playground(app)
    dependencies = [Security(bearer), Security(api_key_header), Depends(require_engine)]
    for router, tag, statuses in (
        (completions.router, "OpenAI", GENERATION_ERRORS),
        (chat.router, "OpenAI", GENERATION_ERRORS),
        (models.router, "OpenAI", COMMON_ERRORS),
        (tokenizing.router, "tokens", BODY_ERRORS),
    ):
        app.include_router(router, tags=[tag], dependencies=dependencies, responses=error_responses(*statuses))
