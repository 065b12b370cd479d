"""API keys, as `Authorization: Bearer KEY`. Without configured keys everybody is let in."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from server.errors import InvalidApiKeyError

_bearer = HTTPBearer(auto_error=False, description="One of `server.api_keys`; anything when none is configured.")


async def require_api_key(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> None:
    """Raises InvalidApiKeyError. Every key is compared in constant time, so that timing tells nothing of any."""
    keys: tuple[str, ...] = request.app.state.api_keys
    if not keys:
        return
    if credentials is None:
        raise InvalidApiKeyError("You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY`.")
    given = credentials.credentials.encode()
    if not sum(secrets.compare_digest(given, key.encode()) for key in keys):  # `any` would stop at the first match
        raise InvalidApiKeyError("Incorrect API key provided.")
