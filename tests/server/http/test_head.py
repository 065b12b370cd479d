"""HEAD is answered wherever GET is: with the same status and headers, and no body."""

from __future__ import annotations

import httpx
import pytest

from server.app import VERSION
from server.settings.config import ServerConfig
from tests.server.api.test_openapi import SCHEMA
from tests.server.conftest import Connect, Serve
from tests.server.fake_engine import FakeEngine

ROUTES = [path.replace("{model_id}", "plain") for path, methods in SCHEMA["paths"].items() if "get" in methods]
PATHS = [
    *ROUTES,
    "/docs",
    "/playground",
    "/playground/main.js",
    "/playground/",
    "/openapi.json",
    "/v1/nothing",
    "/v1/models/nobody",
    "/v1/completions",
]
CHANGING = ("openai-processing-ms", "x-request-id", "date", "content-length")


def test_there_are_routes() -> None:
    assert {"/", "/ping", "/health", "/ready", "/version", "/metrics", "/v1/models", "/v1/models/plain"} <= {*ROUTES}


@pytest.mark.parametrize("path", PATHS)
async def test_head_is_get_without_the_body(connect: Connect, path: str) -> None:
    client = await connect()
    got, head = await client.get(path), await client.head(path)
    assert head.status_code == got.status_code
    assert head.content == b""
    same = {name: value for name, value in got.headers.items() if name not in CHANGING}
    assert {name: value for name, value in head.headers.items() if name not in CHANGING} == same


async def test_head_over_a_real_socket_keeps_the_connection(serve: Serve) -> None:
    async with httpx.AsyncClient(base_url=await serve()) as client:
        for _ in range(2):
            response = await client.head("/version")
            assert response.status_code == 200
            assert int(response.headers["content-length"]) > 0
            assert (await client.get("/health")).json() == {"status": "ok"}


async def test_allow_names_head_beside_get(connect: Connect) -> None:
    client = await connect()
    assert (await client.post("/health")).headers["allow"] == "GET, HEAD"
    assert (await client.head("/v1/completions")).headers["allow"] == "POST"


async def test_head_needs_a_key_where_get_does(connect: Connect) -> None:
    client = await connect(config=ServerConfig(api_keys=("one",)))
    assert (await client.head("/v1/models")).status_code == 401
    assert (await client.head("/v1/models", headers={"authorization": "Bearer one"})).status_code == 200


async def test_the_root_tells_where_things_are(connect: Connect) -> None:
    client = await connect(config=ServerConfig(api_keys=("one",)))
    told = (await client.get("/")).json()
    assert (told["name"], told["version"]) == ("w2s", VERSION)
    assert told["links"]["docs"] == "/docs"
    for path in told["links"].values():
        assert (await client.get(path)).status_code in (200, 401), path
    hidden = await connect(config=ServerConfig(admin_port=9999))
    assert "metrics" not in (await hidden.get("/")).json()["links"]


async def test_ping_answers_as_ready_does(connect: Connect) -> None:
    assert (await (await connect()).get("/ping")).json() == {"status": "ready"}
    response = await (await connect(FakeEngine(ready=False))).get("/ping")
    assert response.status_code == 503
    assert response.headers["retry-after"]
