"""`/openapi.json`: every example request is served, and every response matches its schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from server.app import VERSION, create_app
from server.engine_host import EngineHost
from server.errors import ERROR_SPECS
from tests.fakes import FakeLargeModel, fake_engine, letters
from tests.server.conftest import Connect
from w2s_core.structured.tool_formats import HERMES

SCHEMA = create_app(EngineHost(fake_engine)).openapi()
OPEN = {"/", "/version", "/health", "/ready", "/ping", "/metrics"}
PATHS = {
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/models",
    "/v1/models/{model_id}",
    "/tokenize",
    "/detokenize",
    *OPEN,
}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in SCHEMA["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def requests() -> Iterator[Any]:
    for path, method, operation in operations():
        named = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("examples", {})
        for name, example in named.items():
            yield pytest.param(path, operation, example["value"], id=f"{method} {path} {name}")


def valid(operation: dict[str, Any], status: str, body: Any) -> None:
    schema = operation["responses"][status]["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": SCHEMA["components"]}).validate(body)


@pytest.fixture
async def client(connect: Connect) -> httpx.AsyncClient:
    """An engine whose models bear the demo's names."""
    large = FakeLargeModel(letters(eos=0.05))
    large.tool_format = HERMES.name
    engine = fake_engine(large)
    names = {"smollm2": "plain", "smollm2-positive": "guided"}
    engine._planner.served.update({new: engine._planner.served[old] for new, old in names.items()})  # type: ignore[attr-defined]
    return await connect(engine)


def test_every_route_is_described() -> None:
    assert SCHEMA["paths"].keys() >= PATHS
    assert SCHEMA["info"]["version"] == VERSION


def test_everything_that_takes_a_body_has_examples() -> None:
    described = {example.values[0] for example in requests()}
    assert described == {path for path, method, _ in operations() if method == "post"}


@pytest.mark.parametrize(("path", "operation", "body"), list(requests()))
async def test_example_requests_are_served(
    client: httpx.AsyncClient, path: str, operation: dict[str, Any], body: dict[str, Any]
) -> None:
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": SCHEMA["components"]}).validate(body)
    if path == "/detokenize":
        body = {**body, "tokens": [97, 98]}  # the fake model's vocabulary is smaller
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    if body.get("stream"):
        assert response.headers["content-type"].startswith("text/event-stream")
    else:
        valid(operation, "200", response.json())


@pytest.mark.parametrize(("path", "method", "operation"), [pytest.param(*found, id=found[0]) for found in operations()])
def test_example_answers_have_the_shape_that_they_illustrate(path: str, method: str, operation: dict[str, Any]) -> None:
    contents = operation["responses"]["200"]["content"]
    if path == "/metrics":
        assert set(contents) == {"text/plain"}
        return
    content = contents["application/json"]
    if path not in ("/health", "/ready", "/ping"):
        assert "example" in content
        valid(operation, "200", content["example"])


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
async def test_refusals_have_the_promised_shape(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(path, json={"model": 3})
    assert response.status_code == 400
    valid(SCHEMA["paths"][path]["post"], "400", response.json())


@pytest.mark.parametrize(("path", "method", "operation"), [pytest.param(*found, id=found[0]) for found in operations()])
def test_every_error_is_described_with_an_example(path: str, method: str, operation: dict[str, Any]) -> None:
    errors = {int(status): response for status, response in operation["responses"].items() if status != "200"}
    assert bool(errors) == (path not in OPEN - {"/ready", "/ping"})
    for status, response in errors.items():
        example = response["content"]["application/json"]["example"]
        valid(operation, str(status), example)
        assert response["description"]
        assert ("Retry-After" in response["headers"]) == (status in (429, 503))
    assert (401 in errors) == bool(operation.get("security")) == (path not in OPEN)


def test_every_row_of_the_table_of_errors_is_described() -> None:
    told = {int(s) for _, _, operation in operations() for s in operation["responses"] if s != "200"}
    assert told == {kind.status for kind in ERROR_SPECS.values()} | {408, 413, 415, 431}


async def test_the_pages_are_served(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json() == SCHEMA
    assert "openapi.json" in (await client.get("/docs")).text
