"""Generated JSON schemas through the whole server, with tiny random models whose text is wild."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.schemas import Schema, schema_of
from tests.tiny import byte_tokenizer
from w2s_core.structured.grammar_compiling import compile_grammar, new_matcher, new_tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="session")
TOKENIZER = new_tokenizer(byte_tokenizer().backend_tokenizer.to_str(), [])
GUIDANCE = {"pairs": {"same": 1.0}, "beam_width": 2, "successors": 2, "chunk_length": 16}
AT_ONCE = 24


async def choice(client: httpx.AsyncClient, **body: Any) -> tuple[str, str]:
    """Text and finish_reason of a completion."""
    response = await client.post("/v1/completions", json={"model": "plain", "prompt": "Say: ", **body})
    assert response.status_code == 200, response.text
    [found] = response.json()["choices"]
    return found["text"], found["finish_reason"]


def begins(text: str, kind: Any, source: str) -> bool:
    """Whether the grammar can go on from here, asked from scratch."""
    matcher = new_matcher(TOKENIZER, compile_grammar(kind, source))
    tokens = TOKENIZER.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens)


def ask_for(number: int, schema: Schema) -> dict[str, Any]:
    """The same wish in each of its spellings; every other one guided."""
    named = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}
    spellings: list[dict[str, Any]] = [
        {"response_format": named},
        {"guided_json": schema},
        {"guided_json": json.dumps(schema)},
        {"structured_outputs": {"json": schema}},
    ]
    guidance = {"guidance": GUIDANCE} if number % 2 else {}
    return {"seed": number, "max_tokens": 300, **spellings[number // 2 % 4], **guidance}


async def check_schemas(client: httpx.AsyncClient, numbers: range) -> None:
    """Every complete answer validates; every other one is a beginning. Most are complete."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def check(number: int) -> bool:
        schema = schema_of(number)
        async with turns:
            text, reason = await choice(client, **ask_for(number, schema))
        if reason == "stop":
            jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)
            return True
        assert reason == "length"
        assert begins(text, "json", json.dumps(schema)), (number, text)
        return False

    complete = await asyncio.gather(*map(check, numbers))
    assert sum(complete) > 0.8 * len(numbers)


async def test_generated_schemas_are_followed(client: httpx.AsyncClient) -> None:
    await check_schemas(client, range(100))


@pytest.mark.slow
async def test_a_thousand_generated_schemas_are_followed(client: httpx.AsyncClient) -> None:
    await check_schemas(client, range(1000))


@pytest.mark.parametrize("guidance", [{}, {"guidance": GUIDANCE}], ids=["plain", "guided"])
@pytest.mark.parametrize(
    ("body", "kind", "source", "fits"),
    [
        ({"guided_regex": r"(\d{1,3}\.){3}\d{1,3}"}, "regex", r"(\d{1,3}\.){3}\d{1,3}", r"(\d{1,3}\.){3}\d{1,3}"),
        ({"structured_outputs": {"regex": "[ab/]{3}c?\n"}}, "regex", "[ab/]{3}c?\n", "[ab/]{3}c?\n"),
        ({"guided_choice": ["yes", "no", "né\n"]}, "choice", '["yes", "no", "né\\n"]', "yes|no|né\n"),
        ({"structured_outputs": {"choice": ["up"]}}, "choice", '["up"]', "up"),
        ({"guided_grammar": 'start: "a" b\nb: /[0-9]{2}/'}, "grammar", 'start: "a" b\nb: /[0-9]{2}/', "a[0-9]{2}"),
        ({"structured_outputs": {"grammar": 'root ::= [a-c]* "/"'}}, "grammar", 'root ::= [a-c]* "/"', "[a-c]*/"),
        ({"response_format": {"type": "json_object"}}, "json_object", "", None),
        ({"structured_outputs": {"json_object": True}}, "json_object", "", None),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "any"}}}, "json_object", "", None),
    ],
)
async def test_every_kind_of_grammar(
    client: httpx.AsyncClient, body: dict[str, Any], kind: str, source: str, fits: str | None, guidance: dict[str, Any]
) -> None:
    for seed in range(3):
        text, reason = await choice(client, **body, **guidance, seed=seed, max_tokens=200)
        if reason == "length":
            assert begins(text, kind, source)
        elif fits is None:
            assert isinstance(json.loads(text), dict)
        else:
            assert re.fullmatch(fits, text, re.ASCII)
        assert reason == "stop" or kind == "json_object"


async def test_half_an_answer_is_too_long(client: httpx.AsyncClient) -> None:
    for guidance in ({}, {"guidance": GUIDANCE}):
        text, reason = await choice(client, guided_regex="a{30}", max_tokens=20, **guidance)
        assert (text, reason) == ("a" * 20, "length")


class Pet(BaseModel):
    kind: Literal["cat", "dog"]
    age: int = Field(ge=0, le=30)
    tags: list[Literal["a", "b"]] = Field(max_length=2)


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_the_official_client_parses_a_model(url: str, model: str) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="x", max_retries=0, _strict_response_validation=True
    ) as connected:
        messages: Any = [{"role": "user", "content": "A pet?"}]
        answer = await connected.chat.completions.parse(
            model=model, messages=messages, response_format=Pet, max_tokens=400, seed=3
        )
        assert isinstance(answer.choices[0].message.parsed, Pet)
        async with connected.chat.completions.stream(
            model=model, messages=messages, response_format=Pet, max_tokens=400, seed=3
        ) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.parsed == answer.choices[0].message.parsed


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"guided_json": {"type": "nothing"}}, "guided_json"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[1]"}, "guided_json"),
        ({"guided_json": {"not": {"type": "string"}}}, "guided_json"),
        ({"guided_json": {"type": "string", "format": "poem"}}, "guided_json"),
        ({"guided_json": {"type": "string", "format": "poem", "x-guidance": {"lenient": True}}}, "guided_json"),
        ({"guided_json": {"type": "integer", "minimum": 3, "maximum": 2}}, "guided_json"),
        ({"guided_json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}, "guided_json"),
        ({"guided_json": {"$ref": "file:///etc/hostname"}}, "guided_json"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}},
            "response_format.json_schema.schema",
        ),
        ({"guided_json": {"type": "number", "exclusiveMinimum": 53, "maximum": 53.5}}, "guided_json"),
        ({"guided_regex": "(("}, "guided_regex"),
        ({"structured_outputs": {"regex": "a(?=b)"}}, "structured_outputs.regex"),
        ({"guided_grammar": "start: nobody"}, "guided_grammar"),
        ({"guided_choice": ["x" * 200_000]}, "guided_choice"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
    ],
)
async def test_what_cannot_be_followed_is_refused(client: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    response = await client.post("/v1/completions", json={"model": "plain", "prompt": "x", **body})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        {"guided_json": {"type": "integer", "multipleOf": 123456789}},  # takes for ever
        {"guided_grammar": "start: A0\n" + "\n".join(f'A{i}: "a" A{i + 1} "b"' for i in range(5000)) + '\nA5000: "c"'},
        {"guided_grammar": "start: X\nX: /((a{1000}){1000}){1000}/"},
        {"guided_json": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}}},
    ],
    ids=["time", "stack", "lexer", "items"],
)
async def test_what_would_take_the_server_down_is_refused(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    hostile = asyncio.create_task(client.post("/v1/completions", json={"model": "plain", "prompt": "x", **body}))
    assert (await client.post("/v1/completions", json={"model": "plain", "prompt": "x"})).status_code == 200
    response = await hostile
    assert response.status_code == 400
    assert response.json()["error"]["param"] in body
    assert await choice(client, guided_choice=["fine"]) == ("fine", "stop")
