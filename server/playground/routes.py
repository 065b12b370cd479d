"""`GET /playground` and its files: the page in which people try the served models and watch a search.

The page is a client like any other. It needs no key itself, and calls the API with the key that a visitor types in.
All its addresses are relative, so it works behind a path prefix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from server.access.policy import Policy

PATH = "/playground"
_PAGE = "index.html"
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
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
    "cache-control": "no-cache",  # a browser asks each time, and gets a 304 until the server is another version
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file of the page in memory, with its media type and its entity tag."""

    content: bytes
    media_type: str
    etag: str


def _read(file: Traversable) -> StaticFile:
    content = file.read_bytes()
    media_type = _MEDIA_TYPES[file.name.rsplit(".", 1)[-1]]
    return StaticFile(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def static_files() -> Mapping[str, StaticFile]:
    """The files of the page by their names. There are no folders, and no other file can be asked for."""
    folder = files(__package__).joinpath("static").iterdir()
    return MappingProxyType({file.name: _read(file) for file in folder if file.name.rsplit(".", 1)[-1] in _MEDIA_TYPES})


_FILES = static_files()


@router.get(PATH)
async def page(request: Request) -> Response:
    """The page."""
    return _respond(request, _PAGE)


@router.get(f"{PATH}/")
async def page_with_slash(request: Request) -> Response:
    """Redirects to the page, whose relative addresses hold without the slash."""
    _require_enabled(request)
    return RedirectResponse(f"..{PATH}", 307)


@router.get(PATH + "/{name}")
async def file(name: str, request: Request) -> Response:
    """One of the page's files."""
    return _respond(request, name)


def _respond(request: Request, name: str) -> Response:
    """The file; a 304 without it if the browser has it already. Raises HTTPException (404) if there is none."""
    _require_enabled(request)
    found = _FILES.get(name)
    if found is None:
        raise HTTPException(404)
    headers = {**_HEADERS, "etag": found.etag}
    known = request.headers.get("if-none-match", "")
    if found.etag in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)


def _require_enabled(request: Request) -> None:
    policy: Policy = request.app.state.policy
    if not policy.config.playground:
        raise HTTPException(404)
