"""API keys, as `Authorization: Bearer KEY`. Without configured keys everybody is let in."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from server.access.policy import Policy
from server.errors import InvalidApiKeyError

bearer = HTTPBearer(auto_error=False, description="One of the configured API keys; anything when none is configured.")


class GuardedRoute(APIRoute):
    """Asks for the key before anything of the body is read: strangers have nothing parsed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            await _admit(request)
            return await handle(request)

        return guarded


async def _admit(request: Request) -> None:
    """Notes in the request's state whose key it is. Raises InvalidApiKeyError, or OverloadedError at a key's limit."""
    policy: Policy = request.app.state.policy
    if not policy.keys:
        return
    credentials = await bearer(request)
    if credentials is None:
        raise InvalidApiKeyError("You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY`.")
    key = policy.keys.find(credentials.credentials)
    if key is None:
        raise InvalidApiKeyError("Incorrect API key provided.")
    request.state.api_key = key.name
    request.state.lease = policy.ledger.enter(key)
