"""Small JSON schemas of every kind, by number: the same number gives the same schema."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
PATTERNS = ("^[a-c]{1,4}$", "^(yes|no)$", r"^\d{2}-[A-Z]$", "^x?y+z$")


def schema_of(number: int) -> Schema:
    """Objects mostly, as clients ask for; every fourth one something else."""
    chance = random.Random(number)
    return _any(chance, 2) if number % 4 == 0 else _object(chance, 2)


def _any(chance: random.Random, depth: int) -> Schema:
    kinds: list[Callable[[random.Random, int], Schema]] = [_text, _number, _integer, _enum, _const, _simple]
    if depth:
        kinds += [_object, _array, _tuple, _either, _reference]
    return chance.choice(kinds)(chance, depth - 1)


def _text(chance: random.Random, _: int) -> Schema:
    kind = chance.randrange(4)
    if kind == 0:
        return {"type": "string", "pattern": chance.choice(PATTERNS)}
    if kind == 1:
        return {"type": "string", "format": chance.choice(["date", "time", "uuid", "ipv4"])}
    low = chance.randrange(4)
    return {"type": "string", "minLength": low, "maxLength": low + chance.randrange(5)}


def _number(chance: random.Random, _: int) -> Schema:
    low = chance.randrange(-400, 400) / 4
    if chance.random() < 0.5:
        return {"type": "number", "exclusiveMinimum": low, "maximum": low + chance.choice([3.25, 1000])}
    return {"type": "number", "minimum": low, "maximum": low + chance.choice([0.5, 3.25, 1000])}


def _integer(chance: random.Random, _: int) -> Schema:
    low = chance.randrange(-1000, 1000)
    if chance.random() < 0.3:
        return {"type": "integer", "multipleOf": chance.choice([2, 5, 7]), "minimum": 0, "maximum": 1000}
    return {"type": "integer", "minimum": low, "exclusiveMaximum": low + chance.choice([1, 12, 100000])}


def _enum(chance: random.Random, _: int) -> Schema:
    return {"enum": chance.sample(["red", "grün", 'a "quoted"\n', 1, -2.5, True, None, ["x"], {"k": "v"}, ""], 4)}


def _const(chance: random.Random, _: int) -> Schema:
    return {"const": chance.choice(["é😀", 7, None, False, [1, 2], {"a": {"b": []}}])}


def _simple(chance: random.Random, _: int) -> Schema:
    return {"type": chance.choice(["boolean", "null", ["integer", "null"], ["boolean", "string"]])}


def _object(chance: random.Random, depth: int) -> Schema:
    names = chance.sample(["a", "name", "a b", "ü", "x-1", "list"], chance.randrange(1, 4))
    schema: Schema = {
        "type": "object",
        "properties": {name: _any(chance, depth) for name in names},
        "required": [name for name in names if chance.random() < 0.6],
        "additionalProperties": False,
    }
    if chance.random() < 0.2:
        schema["additionalProperties"] = {"type": "boolean"}
    return schema


def _array(chance: random.Random, depth: int) -> Schema:
    low = chance.randrange(3)
    return {"type": "array", "items": _any(chance, depth), "minItems": low, "maxItems": low + chance.randrange(3)}


def _tuple(chance: random.Random, depth: int) -> Schema:
    first = [_any(chance, depth) for _ in range(2)]
    return {"type": "array", "prefixItems": first, "items": False, "minItems": chance.randrange(3)}


def _either(chance: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(chance, depth) for _ in range(2)], "description": "either"}


def _reference(chance: random.Random, depth: int) -> Schema:
    """A list of itself, at most two at each level."""
    leaf = _any(chance, 0)
    node = {"type": "object", "properties": {"leaf": leaf}, "required": ["leaf"], "additionalProperties": False}
    return {"type": "array", "items": node, "maxItems": 2}
