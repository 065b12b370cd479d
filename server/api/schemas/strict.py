"""Closes JSON schemas for `strict: true`: an object has the properties that the schema describes, and no others.

OpenAI answers 400 to a strict schema that leaves anything open. Closing it gives the answer that was meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

_MAPPINGS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")
_PARTS = ("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas")  # that describe the same object as `properties`


def close_objects(schema: dict[str, Any]) -> dict[str, Any]:
    """A copy of the schema in which objects with `properties` are closed, as far as it does not say otherwise.

    Without `additionalProperties` there are none, and without `required` all properties are. A schema that composes an
    object of several parts stays as it is: each part would forbid what the others describe.
    """
    closed = deepcopy(schema)
    objects = [inner for inner in _subschemas(closed) if isinstance(inner.get("properties"), dict)]
    if any(_is_composed(inner) for inner in _subschemas(closed)):
        return schema
    for inner in objects:
        inner.setdefault("additionalProperties", False)
        inner.setdefault("required", list(inner["properties"]))
    return closed


def _is_composed(schema: dict[str, Any]) -> bool:
    parts = schema.get("allOf")
    return (isinstance(parts, list) and len(parts) > 1) or (
        "properties" in schema and any(key in schema for key in _PARTS)
    )


def _subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """The schema and all schemas in it. What is no schema is left out."""
    if not isinstance(schema, dict):
        return
    yield schema
    for key in _MAPPINGS:
        if isinstance(inner := schema.get(key), dict):
            for value in inner.values():
                yield from _subschemas(value)
    for key in _LISTS:
        if isinstance(inner := schema.get(key), list):
            for value in inner:
                yield from _subschemas(value)
    for key in _SINGLE:
        yield from _subschemas(schema.get(key))
