"""`GET /docs`: Swagger UI for `/openapi.json`, with its files served from here and not from a CDN."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

ASSETS = "/docs/assets"
router = APIRouter()


def mount_assets(app: FastAPI) -> None:
    """Serves Swagger UI's files, which the package fastapi_offline holds."""
    app.mount(ASSETS, StaticFiles(packages=[("fastapi_offline", "static")]))


@router.get("/docs", include_in_schema=False)
async def documentation(request: Request) -> HTMLResponse:
    """The page."""
    app: FastAPI = request.app
    return get_swagger_ui_html(  # with addresses relative to the page's own, which hold behind any path prefix
        openapi_url="openapi.json",
        title=app.title,
        swagger_js_url=f".{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f".{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f".{ASSETS}/favicon.png",
        swagger_ui_parameters={"validatorUrl": "none"},  # or the page would send the description's URL to swagger.io
    )
