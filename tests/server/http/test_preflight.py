"""CORS preflights: a refused one is OpenAI's JSON error, as every error is."""

from __future__ import annotations

import pytest

from server.settings.config import ServerConfig
from tests.server.conftest import Connect
from tests.server.test_errors import INVALID, check

ORIGIN = "https://app.example.com"
ASKS = {"origin": ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"origin": "https://evil.example.com"}, "origin"),
        ({"access-control-request-method": "DELETE"}, "method"),
        ({"origin": "null", "access-control-request-method": "PUT"}, "origin, method"),
        ({"access-control-request-private-network": "true"}, "private-network"),
    ],
)
async def test_a_refused_preflight_is_an_error_like_any_other(
    connect: Connect, changes: dict[str, str], said: str
) -> None:
    client = await connect(config=ServerConfig(cors_origins=(ORIGIN,)))
    response = await client.options("/v1/models", headers=ASKS | changes)
    message = check(response, 400, INVALID, None)
    assert message == f"Disallowed CORS {said}"
    assert "origin" in response.headers["vary"].lower()
    assert ("access-control-allow-origin" in response.headers) == (changes.get("origin", ORIGIN) == ORIGIN)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_what_is_allowed_is(connect: Connect, method: str) -> None:
    client = await connect(config=ServerConfig(cors_origins=(ORIGIN,)))
    response = await client.options("/v1/models", headers=ASKS | {"access-control-request-method": method})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
