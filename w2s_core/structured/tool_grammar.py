"""Builds the grammar of an answer that must call tools (`tool_choice` "required", or a named function).

The grammar is in llguidance's dialect of Lark, with JSON schemas in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from w2s_core.structured.tool_formats import ToolFormat


def tool_call_grammar(
    form: ToolFormat, tools: Sequence[Mapping[str, Any]], *, max_calls: int | None, opening_token: int | None
) -> str:
    """Returns the Lark grammar of one or more calls of `tools`, function schemas in OpenAI's form.

    `max_calls` 1 admits a single call, None any number. `opening_token`: the id of the format's opening where that is a
    special token; None where it is text.
    """
    opening = json.dumps(form.opening) if opening_token is None else f"<[{opening_token}]>"
    first, further = _call_rules(form, opening)
    repeated = "" if max_calls == 1 else f" ({further})*"
    beginning, end = (f'{opening} "["', '"]"') if form.lists else ("", "")
    rule = " ".join(part for part in (beginning, first + repeated, end) if part)
    return f"start: {rule}\ncall: %json {json.dumps(_call_schema(form, tools))}\n"


def _call_rules(form: ToolFormat, opening: str) -> tuple[str, str]:
    """The rule of the first call, and that of each further one."""
    if form.lists:
        return "call", '", " call'
    if form.bare:
        return "call", f"{json.dumps(form.closing + ' ')} call"
    wrapped = f'{opening} "\\n" call {json.dumps(chr(10) + form.closing)}'
    return wrapped, f'"\\n" {wrapped}'


def _call_schema(form: ToolFormat, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON schema of one call of any of the tools."""
    calls, definitions = [], {}
    for number, tool in enumerate(tools):
        function, key = tool["function"], f"tool{number}"
        pointer = f"#/$defs/{key}"
        definitions[key] = _rebased(function["parameters"], pointer) | {"type": "object"}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, form.arguments: {"$ref": pointer}},
                "required": ["name", form.arguments],
                "additionalProperties": False,
            }
        )
    return {"$defs": definitions, **(calls[0] if len(calls) == 1 else {"anyOf": calls})}


def _rebased(schema: Any, pointer: str) -> Any:
    """Copies a schema that moves to `pointer`, with its references to itself (`#…`) adapted."""
    if isinstance(schema, dict):
        return {
            key: pointer + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _rebased(value, pointer)
            for key, value in schema.items()
        }
    return [_rebased(item, pointer) for item in schema] if isinstance(schema, list) else schema
