"""`GET /playground` and its files: the page in which people try the served models and watch a search.

The page is a client like any other. It needs no key itself, and calls the API with the key that a visitor types in.
All its addresses are relative, so it works behind a path prefix.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from server.access.policy import Policy

PATH = "/playground"
# Scripts, styles and calls of this origin alone, nothing inline, in no other page's frame.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "cache-control": "no-cache",  # a browser asks each time, and gets a 304 while the file is the same
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class PlaygroundFiles(StaticFiles):
    """The page's files with the headers that guard them. They are not found while `server.playground` is false."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A response with the file; a 304 if the browser has it. Raises HTTPException (404, 405) otherwise."""
        policy: Policy = scope["app"].state.policy
        if not policy.config.playground:
            raise HTTPException(404)
        if path == ".":  # the page with a slash, behind which its relative addresses would not hold
            return RedirectResponse(f"..{PATH}", 307)
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


def mount_playground(app: FastAPI) -> None:
    """Serves the page, and its files below it."""
    files = PlaygroundFiles(packages=[(__package__, "static")])

    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    app.add_route(PATH, page, include_in_schema=False)
    app.mount(PATH, files)
