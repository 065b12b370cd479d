"""What an answer must be that has to call tools, as a Lark grammar (llguidance's dialect, with JSON schemas in it)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from w2s_core.structured.tool_formats import ToolFormat


def calls_grammar(form: ToolFormat, tools: Sequence[Mapping[str, Any]], *, most: int | None, mark: int | None) -> str:
    """One call or several of `tools` (function schemas as OpenAI writes them), of one call if `most` is 1.

    `mark`: the token that is the format's opening, where that is a special one; None where it is text.
    """
    opening = json.dumps(form.opening) if mark is None else f"<[{mark}]>"
    call, more = _shape(form, opening)
    repeated = "" if most == 1 else f" ({more})*"
    beginning, end = (f'{opening} "["', '"]"') if form.lists else ("", "")
    rule = " ".join(part for part in (beginning, call + repeated, end) if part)
    return f"start: {rule}\ncall: %json {json.dumps(_schema(form, tools))}\n"


def _shape(form: ToolFormat, opening: str) -> tuple[str, str]:
    """The first call, and each further one."""
    if form.lists:
        return "call", '", " call'
    if form.bare:
        return "call", f"{json.dumps(form.closing + ' ')} call"
    wrapped = f'{opening} "\\n" call {json.dumps(chr(10) + form.closing)}'
    return wrapped, f'"\\n" {wrapped}'


def _schema(form: ToolFormat, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one call of any of the tools."""
    calls, shared = [], {}
    for number, tool in enumerate(tools):
        function, place = tool["function"], f"tool{number}"
        shared[place] = _moved(function["parameters"], f"#/$defs/{place}") | {"type": "object"}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, form.arguments: {"$ref": f"#/$defs/{place}"}},
                "required": ["name", form.arguments],
                "additionalProperties": False,
            }
        )
    return {"$defs": shared, **(calls[0] if len(calls) == 1 else {"anyOf": calls})}


def _moved(schema: Any, place: str) -> Any:
    """The schema with its references to itself as they are where it now stands."""
    if isinstance(schema, dict):
        return {
            key: place + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, place)
            for key, value in schema.items()
        }
    return [_moved(item, place) for item in schema] if isinstance(schema, list) else schema
