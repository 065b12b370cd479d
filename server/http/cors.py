"""CORS, with errors in OpenAI's format."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from server.errors import error_response


class JsonCORSMiddleware(CORSMiddleware):
    """Starlette's middleware, which answers a refused preflight in plain text."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        refusal = HTTPException(response.status_code, bytes(response.body).decode(), headers)
        return error_response(refusal, request_id="")
