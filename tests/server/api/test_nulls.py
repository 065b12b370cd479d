"""Null means "not given", in every field at every depth of every request body, found by walking the JSON schemas."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from server.api.schemas.chat import ChatBody
from server.api.schemas.completions import CompletionBody
from server.api.schemas.tokenizing import DetokenizeBody, TokenizeChat, TokenizeText
from server.api.schemas.unsupported import UNSUPPORTED_FIELDS
from tests.fakes import fake_engine
from tests.server.conftest import Connect
from tests.server.fake_engine import FakeEngine

HI = {"role": "user", "content": "Hi"}
# By body: its path, and a minimal example.
BODIES: dict[type[BaseModel], tuple[str, dict[str, Any]]] = {
    CompletionBody: ("/v1/completions", {"model": "plain", "prompt": "x"}),
    ChatBody: ("/v1/chat/completions", {"model": "plain", "messages": [HI], "tool_choice": "none"}),
    TokenizeText: ("/tokenize", {"prompt": "x"}),
    TokenizeChat: ("/tokenize", {"messages": [HI]}),
    DetokenizeBody: ("/detokenize", {"tokens": [104]}),
}
Path = tuple[str | int, ...]


class Walk:
    """Finds every field of a body's JSON schema, with a body that holds it."""

    def __init__(self, body: type[BaseModel]) -> None:
        self.schema = body.model_json_schema()

    def resolve(self, schema: dict[str, Any]) -> dict[str, Any]:
        name = schema.get("$ref", "").removeprefix("#/$defs/")
        return self.schema["$defs"][name] if name else schema

    def variants(self, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The members of unions, references followed."""
        schema = self.resolve(schema)
        members = schema.get("anyOf") or schema.get("oneOf")
        for member in members or ():
            yield from self.variants(member)
        if not members:
            yield schema

    def sample(self, schema: dict[str, Any]) -> Any:
        """A value that the schema allows: the smallest one."""
        schema = next(self.variants(schema))
        if "const" in schema or "enum" in schema:
            return schema.get("const", schema.get("enum", [None])[0])
        match schema.get("type"):
            case "object":
                required = schema.get("required", ())
                return {name: self.sample(schema["properties"][name]) for name in required}
            case "array":
                return [self.sample(schema["items"])] * schema.get("minItems", 0)
            case "integer" | "number":
                return schema.get("minimum", 1)
            case "boolean":
                return True
            case _:
                return "x"

    def fields(self, schema: dict[str, Any], example: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any], bool]]:
        """Every field of an object: its path, an object with all that leads to it, and whether its schema allows null
        although it is required, or forbids it although it is not."""
        for name, inner in schema.get("properties", {}).items():
            required = name in schema.get("required", ())
            nullable = Draft202012Validator({**inner, "$defs": self.schema.get("$defs", {})}).is_valid(None)
            yield (name,), example, nullable == required
            for variant in self.variants(inner):
                for path, value, wrong in self.fields_inside(variant, example.get(name)):
                    yield (name, *path), {**example, name: value}, wrong

    def fields_inside(self, schema: dict[str, Any], example: Any) -> Iterator[tuple[Path, Any, bool]]:
        """The same for the objects in a value; without an example of it, the smallest one is taken."""
        if schema.get("type") == "object":
            yield from self.fields(schema, example if isinstance(example, dict) else self.sample(schema))
        elif schema.get("type") == "array":
            first = example[0] if isinstance(example, list) and example else None
            for variant in self.variants(schema["items"]):
                for path, value, wrong in self.fields_inside(variant, first):
                    yield (0, *path), [value], wrong


def get(body: Any, path: Path) -> Any:
    for part in path:
        body = body[part]
    return body


def walk(kind: type[BaseModel]) -> Iterator[tuple[Path, dict[str, Any], bool]]:
    schema = Walk(kind)
    return schema.fields(schema.schema, BODIES[kind][1])


FIELDS = [(kind, *field) for kind in BODIES for field in walk(kind)]


def test_the_walk_goes_to_every_depth() -> None:
    paths = {".".join(map(str, path)) for _, path, *_ in FIELDS}
    assert {"n", "stream_options.include_usage", "guidance.trace", "response_format.json_schema.strict"} <= paths
    assert {"tools.0.function.strict", "messages.0.tool_calls.0.function.arguments", "add_special_tokens"} <= paths
    assert len(FIELDS) > 200


@pytest.mark.parametrize(
    ("kind", "path", "holder", "wrong"),
    [pytest.param(*field, id=f"{field[0].__name__}-{'.'.join(map(str, field[1]))}") for field in FIELDS],
)
async def test_null_is_not_given(
    connect: Connect, kind: type[BaseModel], path: Path, holder: dict[str, Any], wrong: bool
) -> None:
    assert not wrong, "the schema must say that null is allowed"
    absent, null = deepcopy(holder), deepcopy(holder)
    get(absent, path[:-1]).pop(path[-1], None)
    get(null, path[:-1])[path[-1]] = None
    outcomes = []
    for body in (absent, null):
        engine = FakeEngine()
        client = await connect(fake_engine() if "tokenize" in BODIES[kind][0] else engine)
        response = await client.post(BODIES[kind][0], json=body)
        ids = {"id": None, "created": None} if response.status_code == 200 else {}
        outcomes.append((response.status_code, response.json() | ids, engine.requests))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("kind", [CompletionBody, ChatBody])
@pytest.mark.parametrize("name", UNSUPPORTED_FIELDS)
async def test_null_in_a_field_of_another_api_is_not_given_either(
    connect: Connect, kind: type[BaseModel], name: str
) -> None:
    client = await connect()
    path, body = BODIES[kind]
    assert (await client.post(path, json={**body, name: None})).status_code == 200


async def test_null_keeps_the_served_models_guidance(connect: Connect) -> None:
    engine = FakeEngine()
    client = await connect(engine)
    for guidance in ({}, {"beam_width": None, "chunk_length": None, "pairs": None, "max_sampled_tokens": None}):
        body = {"model": "steered", "prompt": "x", "guidance": guidance}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
    assert engine.requests[0] == engine.requests[1]


async def test_null_inside_of_what_is_the_callers_own_stays(connect: Connect) -> None:
    engine = FakeEngine()
    client = await connect(engine)
    schema = {"enum": [None, 1], "default": None}
    body = {"model": "plain", "messages": [HI], "guided_json": schema, "chat_template_kwargs": {"x": None}}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    [request] = engine.requests
    assert request.sampling.grammar is not None
    assert '"default": null' in request.sampling.grammar.source
    assert request.prompts[0].template_variables == {"x": None}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "chat_template_kwargs"])
async def test_null_does_not_make_a_prompt_a_conversation(connect: Connect, name: str) -> None:
    client = await connect(fake_engine())
    assert (await client.post("/tokenize", json={"prompt": "x", name: None})).status_code == 200
    assert (await client.post("/tokenize", json={"messages": [HI], "prompt": None})).status_code == 200
