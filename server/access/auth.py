"""API key authentication, as `Authorization: Bearer KEY` or `X-Api-Key: KEY`. Without configured keys every request is
accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer

from server.access.policy import Policy
from server.errors import InvalidApiKeyError

bearer = HTTPBearer(
    auto_error=False, description="One of the configured API keys; any value when no key is configured."
)
api_key_header = APIKeyHeader(
    name="X-Api-Key", auto_error=False, description="The same keys; `Authorization` takes precedence."
)


class AuthenticatedRoute(APIRoute):
    """A route that checks the API key before it reads the body, so that nothing of a stranger's body is parsed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def authenticate_and_handle(request: Request) -> Response:
            await _authenticate(request)
            return await handle(request)

        return authenticate_and_handle


async def _authenticate(request: Request) -> None:
    """Sets `api_key`, the key's name, and `lease` in the request's state.

    Raises InvalidApiKeyError, or OverloadedError when the key has reached one of its limits.
    """
    policy: Policy = request.app.state.policy
    if not policy.keys:
        return
    credentials = await bearer(request)
    given = await api_key_header(request) if credentials is None else credentials.credentials
    if given is None:
        raise InvalidApiKeyError("You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY`.")
    key = policy.keys.find(given)
    if key is None:
        raise InvalidApiKeyError("Incorrect API key provided.")
    request.state.api_key = key.name
    request.state.lease = policy.usage.acquire(key)
