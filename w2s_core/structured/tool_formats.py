"""Tool call formats: how models write tool calls in text (Hermes/Qwen, Llama 3 JSON, Mistral).

Which format a model was trained on is read from its chat template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NoReturn

from w2s_core.text.chat_template import ChatTemplate

_NAME_HEAD = re.compile(r"\s*([A-Za-z0-9_.-]{1,64})(?:\[CALL_ID\][A-Za-z0-9_-]+)?(?:\[ARGS\])?\s*")


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call. `arguments` is the text of a JSON object; of a forced call that was cut off, its beginning."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one family of models writes tool calls.

    `opening` stands before a call and `closing` after it, or between two calls; a model may leave out either.
    `bare`: an answer may begin with a call without an opening. `lists`: one opening may stand before several calls, in
    a JSON list or each as its name and arguments. `arguments`: the JSON field that holds a call's arguments.
    `id_length`: characters of a call's id that the template accepts.
    """

    name: str
    opening: str
    closing: str = ""
    bare: bool = False
    lists: bool = False
    arguments: str = "arguments"
    id_length: int = 24

    def find_json(self, head: str) -> tuple[int, str | None] | None:
        """Finds where a call's JSON begins. `head` is the text between an opening and the first brace.

        Returns the JSON's index in `head` + brace, and the tool's name where `head` holds it (Mistral's
        `name[ARGS]{…}`); None where `head` cannot belong to a call.
        """
        if not head.strip():
            return len(head), None
        if not self.lists:
            return None
        if head.strip() == "[":
            return head.index("["), None
        match = _NAME_HEAD.fullmatch(head)
        return (len(head), match[1]) if match else None

    def parse_calls(self, text: str, name: str | None, tool_names: Collection[str]) -> list[Call] | None:
        """Parses the JSON `text` of one call or several.

        `name` is the tool's where it stood before the JSON, which then holds the arguments alone. Returns None where
        the JSON, or any call in it, is not a valid call of one of `tool_names`.
        """
        value = _parse_json(text)
        if name is not None:
            entries: list[Any] = [{"name": name, "arguments": value}]
        else:
            entries = value if isinstance(value, list) else [value]
        calls = [_parse_call(entry, tool_names) for entry in entries]
        return [call for call in calls if call] if entries and all(calls) else None


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>")
LLAMA3_JSON = ToolFormat("llama3_json", "<|python_tag|>", ";", bare=True, arguments="parameters")
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", lists=True, id_length=9)
TOOL_FORMATS = {tool_format.name: tool_format for tool_format in (HERMES, LLAMA3_JSON, MISTRAL)}


def detect_tool_format(template: str) -> ToolFormat | None:
    """Detects the tool call format in the source of a chat template; None where it has none of them."""
    if "<function=" in template:  # Qwen3-Coder's: between Hermes' marks, but not JSON
        return None
    if HERMES.opening in template:
        return HERMES
    if MISTRAL.opening in template:
        return MISTRAL
    if LLAMA3_JSON.opening in template or '"parameters": dictionary' in template:
        return LLAMA3_JSON
    return None


def resolve_tool_format(name: str, template: ChatTemplate | None) -> str | None:
    """Returns the name in `TOOL_FORMATS` for the configuration's `tool_format`.

    "auto" takes the chat template's; None where that has none.
    """
    if name != "auto":
        return name
    detected = detect_tool_format(template.source(tools=True)) if template is not None else None
    return detected.name if detected else None


def _parse_call(entry: Any, tool_names: Collection[str]) -> Call | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or entry["name"] not in tool_names:
        return None
    arguments = entry.get("arguments", entry.get("parameters", {}))
    if isinstance(arguments, str):  # a JSON string that holds JSON
        arguments = _parse_json(arguments)
    if not isinstance(arguments, dict):
        return None
    text = json.dumps(arguments, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return None
    return Call(entry["name"], text)


def _parse_json(text: str) -> Any:
    """Parses JSON strictly; None where the text is not JSON."""
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return None


def _reject_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
