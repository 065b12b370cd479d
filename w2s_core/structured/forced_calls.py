"""Parses tool calls while they stream, in answers that a grammar restricts to tool calls.

Under the grammar of `structured.tool_grammar` every `{` outside of a call begins one, and its name comes first. So the
name is returned as soon as it is complete, and the arguments character by character as the model writes them.
`ToolCallParser`, for free text, has to wait for the end of each call.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from w2s_core.structured.tool_parsing import ArgumentsDelta, CallStart, JsonEndFinder, ParsedPart

_CALL_HEAD = re.compile(r'[^{]*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class ForcedCallParser:
    """Parses one answer. What it returns is final.

    A text that is cut off within the arguments yields a call whose arguments are cut off, as at OpenAI. A text that
    ends before its first call, or holds none, is returned as text.
    """

    def __init__(self, tool_names: Collection[str]) -> None:
        self._tool_names = tool_names
        self._buffer = ""
        self._has_calls = False
        self._arguments: JsonEndFinder | None = None  # of the call whose arguments are being read; None between calls
        self._arguments_length = 0  # characters of them that were returned

    def feed(self, text: str) -> list[ParsedPart]:
        """Appends `text` and returns the parts that have become certain."""
        self._buffer += text
        parts: list[ParsedPart] = []
        while (part := self._next_part()) is not None:
            parts.append(part)
        return parts

    def finish(self) -> list[ParsedPart]:
        """Returns the rest, at the end of the text."""
        rest, self._buffer = self._buffer, ""
        return [] if self._has_calls or not rest else [rest]

    def _next_part(self) -> CallStart | ArgumentsDelta | None:
        return self._start_call() if self._arguments is None else self._continue_call(self._arguments)

    def _start_call(self) -> CallStart | None:
        head = _CALL_HEAD.match(self._buffer)
        if head is None or head[1] not in self._tool_names:
            return None
        self._buffer = self._buffer[head.end() :]
        self._arguments, self._arguments_length, self._has_calls = JsonEndFinder(), 0, True
        return CallStart(head[1])

    def _continue_call(self, arguments: JsonEndFinder) -> ArgumentsDelta | None:
        end = arguments.find_end(self._buffer, -self._arguments_length)
        delta = self._buffer[:end]
        self._buffer = self._buffer[len(delta) :]
        self._arguments_length += len(delta)
        if end is not None:
            self._arguments = None
        return ArgumentsDelta(delta) if delta else None
