"""Parses tool calls while an answer streams. What it returns is final, and does not depend on how the text was cut.

A call is returned when it is complete, because only then is it certain to be one; what turns out not to be a call is
returned as text. Where a grammar restricts the answer to calls, `forced_calls` returns them earlier.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

from w2s_core.structured.tool_formats import Call, ToolFormat
from w2s_core.text.stop_strings import partial_stop_length

ParsedPart: TypeAlias = "str | Call | CallStart | ArgumentsDelta"
_JSON_MARKS = re.compile(r'["\\{}\[\]]')
_MAX_HEAD_LENGTH = 200  # characters between an opening and the first brace


@dataclass(frozen=True, slots=True)
class CallStart:
    """The beginning of a call, whose arguments follow as `ArgumentsDelta`s."""

    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More of the arguments of the call that was started last."""

    text: str


class _State(Enum):
    """What the parser expects at the beginning of its buffer."""

    BARE_CALL_OR_TEXT = auto()  # at the beginning of the answer, or after a call
    TEXT = auto()
    CALL = auto()  # after an opening
    CLOSING = auto()  # after a call, where the closing may stand
    BLANKS = auto()  # after the closing


class ToolCallParser:
    """Splits one answer into text and tool calls.

    Only calls of `tool_names` count. After `max_calls` calls (None: any number) further ones are dropped.
    """

    def __init__(self, form: ToolFormat, tool_names: Collection[str], *, max_calls: int | None = None) -> None:
        self._form = form
        self._tool_names = tool_names
        self._calls_left = max_calls
        self._state = _State.BARE_CALL_OR_TEXT if form.bare else _State.TEXT
        self._buffer = ""
        self._call_offset = 0  # where in the buffer a call's opening, and the blanks before it, end
        self._json = JsonEndFinder()

    def feed(self, text: str) -> list[ParsedPart]:
        """Appends `text` and returns the text and the calls that have become certain."""
        self._buffer += text
        return self._parse(final=False)

    def finish(self) -> list[ParsedPart]:
        """Returns the rest, at the end of the text."""
        return self._parse(final=True)

    def _parse(self, *, final: bool) -> list[ParsedPart]:
        steps = {
            _State.BARE_CALL_OR_TEXT: self._parse_beginning,
            _State.TEXT: self._parse_text,
            _State.CALL: self._parse_call,
            _State.CLOSING: self._skip_closing,
            _State.BLANKS: self._skip_blanks,
        }
        parts: list[ParsedPart] = []
        while self._buffer:
            step = steps[self._state](final)
            if step is None:
                break
            parts += [part for part in step if part]
        return _merge_texts(parts)

    # Each step returns the parts it found, or None where it must wait for more text.

    def _parse_beginning(self, final: bool) -> list[ParsedPart] | None:
        text = self._buffer.lstrip()
        may_open = self._form.opening.startswith(text) and text != self._form.opening  # also where it is all blanks
        if may_open and not final:
            return None
        self._state = _State.TEXT
        if text.startswith("{"):
            self._enter_call(len(self._buffer) - len(text))
        return []

    def _parse_text(self, final: bool) -> list[ParsedPart] | None:
        buffer, opening = self._buffer, self._form.opening
        at = buffer.find(opening)
        if at < 0 and final:
            self._buffer = ""
            return [buffer]
        before = buffer[: at if at >= 0 else len(buffer) - partial_stop_length(buffer, [opening])].rstrip()
        self._buffer = buffer[len(before) :]
        if at < 0:
            return [before] if before else None
        self._enter_call(at - len(before) + len(opening))
        return [before]

    def _enter_call(self, offset: int) -> None:
        self._state, self._call_offset, self._json = _State.CALL, offset, JsonEndFinder()

    def _parse_call(self, final: bool) -> list[ParsedPart] | None:
        brace = self._buffer.find("{", self._call_offset)
        if brace < 0:
            hopeless = final or len(self._buffer) - self._call_offset > _MAX_HEAD_LENGTH
            return self._treat_as_text(self._call_offset) if hopeless else None
        json_start = self._form.find_json(self._buffer[self._call_offset : brace])
        if json_start is None or brace - self._call_offset > _MAX_HEAD_LENGTH:
            return self._treat_as_text(self._call_offset)
        start, name = self._call_offset + json_start[0], json_start[1]
        end = self._json.find_end(self._buffer, start)
        if end is None:
            return self._treat_as_text(len(self._buffer)) if final else None
        calls = self._form.parse_calls(self._buffer[start:end], name, self._tool_names)
        if calls is None:
            return self._treat_as_text(end)
        self._buffer, self._state = self._buffer[end:], _State.CLOSING
        return list(self._within_limit(calls))

    def _treat_as_text(self, end: int) -> list[ParsedPart]:
        """Returns the buffer up to `end` as text: it was not a call."""
        text, self._buffer, self._state = self._buffer[:end], self._buffer[end:], _State.TEXT
        return [text]

    def _within_limit(self, calls: list[Call]) -> list[Call]:
        if self._calls_left is None:
            return calls
        kept = calls[: self._calls_left]
        self._calls_left -= len(kept)
        return kept

    def _skip_closing(self, final: bool) -> list[ParsedPart] | None:
        text, closing = self._buffer.lstrip(), self._form.closing
        if closing.startswith(text) and text != closing and not final:
            return None
        self._buffer, self._state = text.removeprefix(closing), _State.BLANKS
        return []

    def _skip_blanks(self, final: bool) -> list[ParsedPart] | None:
        self._buffer = self._buffer.lstrip()
        if not self._buffer:
            return [] if final else None
        self._state = _State.BARE_CALL_OR_TEXT if self._form.bare else _State.TEXT
        return []


class JsonEndFinder:
    """Finds where a JSON object or list ends in a text that grows, at the cost of the new characters."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._scanned = 0  # characters from the JSON's beginning

    def find_end(self, text: str, start: int) -> int | None:
        """Index after the last bracket of the JSON that begins at `start`; None where it is not there yet."""
        while (mark := _JSON_MARKS.search(text, start + self._scanned)) is not None:
            self._scanned = mark.end() - start
            character = mark[0]
            if character == '"':
                self._in_string = not self._in_string
            elif character == "\\":
                self._scanned += self._in_string  # skips the escaped character
            elif not self._in_string:
                self._depth += 1 if character in "{[" else -1
                if self._depth == 0:
                    return mark.end()
        self._scanned = max(self._scanned, len(text) - start)
        return None


def _merge_texts(parts: list[ParsedPart]) -> list[ParsedPart]:
    """Joins adjacent texts."""
    merged: list[ParsedPart] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return merged
