"""Structured output fields: the grammar that results from each, and rejections that name the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.api.test_requests import BOTH, Asker, ask
from w2s_core.types import Grammar

__all__ = ["ask"]  # a fixture

SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
ANY = {"type": "json_object"}
GRAMMARS: list[tuple[str, Any, Grammar | None]] = [
    ("response_format", None, None),
    ("response_format", {"type": "text"}, None),
    ("response_format", ANY, Grammar("json_object", "", "response_format")),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": False, "description": "y"}},
        Grammar("json", json.dumps(SCHEMA), "response_format.json_schema.schema"),
    ),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "x"}},
        Grammar("json_object", "", "response_format"),
    ),
    ("guided_json", SCHEMA, Grammar("json", json.dumps(SCHEMA), "guided_json")),
    ("guided_json", "{}", Grammar("json", "{}", "guided_json")),
    ("guided_json", {}, Grammar("json", "{}", "guided_json")),
    ("guided_regex", "a+", Grammar("regex", "a+", "guided_regex")),
    ("guided_choice", ["a", "é"], Grammar("choice", '["a", "\\u00e9"]', "guided_choice")),
    ("guided_grammar", 'start: "a"', Grammar("grammar", 'start: "a"', "guided_grammar")),
    ("guided_grammar", None, None),
    ("structured_outputs", {"json": SCHEMA}, Grammar("json", json.dumps(SCHEMA), "structured_outputs.json")),
    ("structured_outputs", {"regex": "a"}, Grammar("regex", "a", "structured_outputs.regex")),
    ("structured_outputs", {"choice": ["a"]}, Grammar("choice", '["a"]', "structured_outputs.choice")),
    ("structured_outputs", {"grammar": "x"}, Grammar("grammar", "x", "structured_outputs.grammar")),
    ("structured_outputs", {"json_object": True}, Grammar("json_object", "", "structured_outputs.json_object")),
]
REFUSED: list[tuple[str, Any, str]] = [
    ("response_format", {}, "response_format"),
    ("response_format", "json_object", "response_format"),
    ("response_format", {"type": "xml"}, "response_format"),
    ("response_format", {"type": "json_object", "schema": {}}, "response_format.schema"),
    ("response_format", {"type": "json_schema"}, "response_format.json_schema"),
    ("response_format", {"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name"),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
        "response_format.json_schema.name",
    ),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "a", "schema": []}},
        "response_format.json_schema.schema",
    ),
    ("guided_json", [], "guided_json"),
    ("guided_json", True, "guided_json"),
    ("guided_choice", [], "guided_choice"),
    ("guided_choice", "a", "guided_choice"),
    ("guided_choice", [1], "guided_choice.0"),
    ("guided_regex", 1, "guided_regex"),
    ("guided_grammar", {}, "guided_grammar"),
    ("structured_outputs", {}, "structured_outputs"),
    ("structured_outputs", {"json_object": False}, "structured_outputs"),
    ("structured_outputs", {"regex": "a", "choice": ["a"]}, "structured_outputs.choice"),
    ("structured_outputs", {"structural_tag": "x"}, "structured_outputs.structural_tag"),
    ("guided_whitespace_pattern", " ", "guided_whitespace_pattern"),
]


@BOTH
@pytest.mark.parametrize(("field", "value", "grammar"), GRAMMARS)
async def test_every_spelling_reaches_the_engine(
    ask: Asker, endpoint: str, field: str, value: Any, grammar: Grammar | None
) -> None:
    request = await ask.asked(endpoint, **{field: value})
    assert request.sampling.grammar == grammar


@BOTH
@pytest.mark.parametrize(("field", "value", "param"), REFUSED)
async def test_what_is_no_grammar_is_refused_by_name(
    ask: Asker, endpoint: str, field: str, value: Any, param: str
) -> None:
    assert await ask.refused(endpoint, **{field: value}) == param


@BOTH
async def test_an_answer_follows_one_grammar(ask: Asker, endpoint: str) -> None:
    assert await ask.refused(endpoint, response_format=ANY, guided_regex="a") == "guided_regex"
    assert await ask.refused(endpoint, guided_choice=["a"], structured_outputs={"regex": "a"}) == "guided_choice"
    assert (await ask.asked(endpoint, response_format={"type": "text"}, guided_regex="a")).sampling.grammar
