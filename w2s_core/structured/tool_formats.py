"""The ways in which models write calls of tools. Which one a model was trained on, its chat template shows."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NoReturn

from w2s_core.text.chat_template import ChatTemplate

_NAMED = re.compile(r"\s*([A-Za-z0-9_.-]{1,64})(?:\[CALL_ID\][A-Za-z0-9_-]+)?(?:\[ARGS\])?\s*")


@dataclass(frozen=True, slots=True)
class Call:
    """One call; `arguments` are a JSON object, as text; of a forced call that was cut off its beginning."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """`opening` stands before a call and `closing` behind it, or between two calls; either may be missing in a text.

    `bare`: an answer may begin with a call without an opening. `lists`: one opening may stand before several calls, in
    a JSON list or each as its name and arguments. `id_length`: characters of a call's id that the template can take.
    """

    name: str
    opening: str
    closing: str = ""
    bare: bool = False
    lists: bool = False
    arguments: str = "arguments"
    id_length: int = 24

    def begin(self, head: str) -> tuple[int, str | None] | None:
        """Where JSON begins in `head`, which stands between an opening and the first brace, and the name that it tells;
        None for what is no call."""
        if not head.strip():
            return len(head), None
        if not self.lists:
            return None
        if head.strip() == "[":
            return head.index("["), None
        named = _NAMED.fullmatch(head)
        return (len(head), named[1]) if named else None

    def read(self, text: str, name: str | None, known: Collection[str]) -> list[Call] | None:
        """The calls in a JSON value, `name`d or telling their names themselves; None where one is none."""
        value = _parsed(text)
        if name is not None:
            entries: list[Any] = [{"name": name, "arguments": value}]
        else:
            entries = value if isinstance(value, list) else [value]
        calls = [_call(entry, known) for entry in entries]
        return [call for call in calls if call] if entries and all(calls) else None


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>")
LLAMA3_JSON = ToolFormat("llama3_json", "<|python_tag|>", ";", bare=True, arguments="parameters")
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", lists=True, id_length=9)
FORMATS = {known.name: known for known in (HERMES, LLAMA3_JSON, MISTRAL)}


def detect(template: str) -> ToolFormat | None:
    """Which of them a chat template shows, if any."""
    if "<function=" in template:  # between the same marks, but no JSON
        return None
    if HERMES.opening in template:
        return HERMES
    if MISTRAL.opening in template:
        return MISTRAL
    if LLAMA3_JSON.opening in template or '"parameters": dictionary' in template:
        return LLAMA3_JSON
    return None


def resolve_tool_format(name: str, template: ChatTemplate | None) -> str | None:
    """The name in `FORMATS` that a configuration's `tool_format` stands for; None where the template shows none."""
    if name != "auto":
        return name
    found = detect(template.source(tools=True)) if template is not None else None
    return found.name if found else None


def _call(entry: Any, known: Collection[str]) -> Call | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or entry["name"] not in known:
        return None
    arguments = entry.get("arguments", entry.get("parameters", {}))
    if isinstance(arguments, str):  # JSON within JSON
        arguments = _parsed(arguments)
    if not isinstance(arguments, dict):
        return None
    text = json.dumps(arguments, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return Call(entry["name"], text)


def _parsed(text: str) -> Any:
    """None for what is no JSON."""
    try:
        return json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        return None


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
