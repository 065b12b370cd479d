"""`strict: true` closes a JSON schema: it forbids what is left open, and requires all where nothing is required."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from server.api.schemas.strict import close_objects
from server.api.schemas.tools import Tool
from tests.server.api.test_requests import Asker
from tests.server.api.test_requests import ask as ask  # noqa: PLC0414  (a fixture)

INTEGER = {"type": "integer"}


def open_object(*names: str, **keywords: Any) -> dict[str, Any]:
    return {"type": "object", "properties": dict.fromkeys(names, INTEGER), **keywords}


def closed(*names: str, **keywords: Any) -> dict[str, Any]:
    return open_object(*names, **{"additionalProperties": False, "required": [*names], **keywords})


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (open_object("result"), closed("result")),
        (closed("a", "b"), closed("a", "b")),
        (open_object("a", "b", required=["a"]), closed("a", "b", required=["a"])),
        (open_object("a", required=[]), closed("a", required=[])),
        (
            open_object("a", additionalProperties=INTEGER),
            open_object("a", additionalProperties=INTEGER, required=["a"]),
        ),
        ({"type": "object"}, {"type": "object"}),
        (INTEGER, INTEGER),
        ({"type": "array", "items": open_object("a")}, {"type": "array", "items": closed("a")}),
        ({"anyOf": [open_object("a"), INTEGER]}, {"anyOf": [closed("a"), INTEGER]}),
        (
            {"$ref": "#/$defs/A", "$defs": {"A": open_object("a")}},
            {"$ref": "#/$defs/A", "$defs": {"A": closed("a")}},
        ),
        (
            {"type": "object", "properties": {"properties": open_object("required")}},
            {
                "type": "object",
                "properties": {"properties": closed("required")},
                "additionalProperties": False,
                "required": ["properties"],
            },
        ),
        ({"enum": [{"properties": {"a": 1}}]}, {"enum": [{"properties": {"a": 1}}]}),
    ],
)
def test_what_a_schema_leaves_open_is_closed(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    before = deepcopy(schema)
    assert close_objects(schema) == expected
    assert schema == before, "the request's own is not changed"


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [open_object("a"), open_object("b")]},
        open_object("a", allOf=[{"$ref": "#/$defs/B"}]),
        open_object("a", oneOf=[{"required": ["a"]}, open_object("b")]),
        {"type": "array", "items": open_object("a", **{"$ref": "#/$defs/B"})},
    ],
)
def test_a_schema_whose_objects_are_made_of_several_parts_stays_as_it_is(schema: dict[str, Any]) -> None:
    """Each part would forbid what the others describe."""
    assert close_objects(schema) == schema


@pytest.mark.parametrize("junk", [{"properties": 3}, {"anyOf": {}}, {"properties": {"a": True}}, {"$defs": [1]}])
def test_what_is_no_schema_is_left_to_the_grammars_check(junk: dict[str, Any]) -> None:
    assert {**close_objects(junk), "additionalProperties": None, "required": None} == {
        **junk,
        "additionalProperties": None,
        "required": None,
    }


@pytest.mark.parametrize(
    ("strict", "expected"), [(True, closed("a")), (False, open_object("a")), (None, open_object("a"))]
)
async def test_strict_closes_the_schema_of_an_answer(ask: Asker, strict: bool | None, expected: dict[str, Any]) -> None:
    named = {"name": "x", "schema": open_object("a"), "strict": strict}
    request = await ask.asked("chat", response_format={"type": "json_schema", "json_schema": named})
    assert request.sampling.grammar is not None
    assert json.loads(request.sampling.grammar.source) == expected


@pytest.mark.parametrize(("strict", "expected"), [(True, closed("a")), (False, open_object("a"))])
def test_strict_closes_the_arguments_of_a_call_and_the_template_sees_the_tool_as_it_is(
    strict: bool, expected: dict[str, Any]
) -> None:
    function = {"name": "f", "parameters": open_object("a"), "strict": strict}
    tool = Tool.model_validate({"type": "function", "function": function})
    assert tool.for_grammar()["function"]["parameters"] == expected
    assert tool.for_template()["function"]["parameters"] == open_object("a")
