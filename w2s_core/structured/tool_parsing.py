"""Reads calls out of a text as it grows. What is told is final, and the same however the text was cut into pieces.

So a call is told when it is complete: before that nobody can know whether it is one. What turns out to be none is text.
Where a grammar holds the answer to calls, `w2s_core.structured.forced_calls` knows earlier.
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
_MARKS = re.compile(r'["\\{}\[\]]')
_LONGEST_HEAD = 200  # characters between an opening and the first brace


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call whose arguments follow, part by part."""

    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """Of the arguments of the call that was begun last."""

    text: str


class _At(Enum):
    BEGINNING = auto()  # of the answer, or behind a call: a bare call may follow
    TEXT = auto()
    CALL = auto()  # behind an opening
    AFTER = auto()  # behind a call, where its closing may stand
    GAP = auto()  # behind the closing


class ToolCallParser:
    """One answer's. `known` are the names of the tools; of more than `most` calls the later ones are dropped."""

    def __init__(self, form: ToolFormat, known: Collection[str], *, most: int | None = None) -> None:
        self._form = form
        self._known = known
        self._left = most
        self._at = _At.BEGINNING if form.bare else _At.TEXT
        self._buffer = ""
        self._opened = 0  # characters of the buffer that a call's opening and the blanks before it take
        self._balance = Balance()

    def feed(self, text: str) -> list[ParsedPart]:
        """What has become certain: text, and calls."""
        self._buffer += text
        return self._read(final=False)

    def finish(self) -> list[ParsedPart]:
        """The rest: there is no more text."""
        return self._read(final=True)

    def _read(self, *, final: bool) -> list[ParsedPart]:
        steps = {
            _At.BEGINNING: self._beginning,
            _At.TEXT: self._text,
            _At.CALL: self._call,
            _At.AFTER: self._after,
            _At.GAP: self._gap,
        }
        pieces: list[ParsedPart] = []
        while self._buffer:
            found = steps[self._at](final)
            if found is None:
                break
            pieces += [piece for piece in found if piece]
        return _joined(pieces)

    # Each step tells what it found, or None where it must wait for more text.

    def _beginning(self, final: bool) -> list[ParsedPart] | None:
        text = self._buffer.lstrip()
        waits = self._form.opening.startswith(text) and text != self._form.opening  # also where there are only blanks
        if waits and not final:
            return None
        self._at = _At.TEXT
        if text.startswith("{"):
            self._open(len(self._buffer) - len(text))
        return []

    def _text(self, final: bool) -> list[ParsedPart] | None:
        buffer, opening = self._buffer, self._form.opening
        at = buffer.find(opening)
        if at < 0 and final:
            self._buffer = ""
            return [buffer]
        before = buffer[: at if at >= 0 else len(buffer) - partial_stop_length(buffer, [opening])].rstrip()
        self._buffer = buffer[len(before) :]
        if at < 0:
            return [before] if before else None
        self._open(at - len(before) + len(opening))
        return [before]

    def _open(self, opened: int) -> None:
        self._at, self._opened, self._balance = _At.CALL, opened, Balance()

    def _call(self, final: bool) -> list[ParsedPart] | None:
        brace = self._buffer.find("{", self._opened)
        if brace < 0:
            hopeless = final or len(self._buffer) - self._opened > _LONGEST_HEAD
            return self._give_up(self._opened) if hopeless else None
        begun = self._form.begin(self._buffer[self._opened : brace])
        if begun is None or brace - self._opened > _LONGEST_HEAD:
            return self._give_up(self._opened)
        start, name = self._opened + begun[0], begun[1]
        end = self._balance.end(self._buffer, start)
        if end is None:
            return self._give_up(len(self._buffer)) if final else None
        calls = self._form.read(self._buffer[start:end], name, self._known)
        if calls is None:
            return self._give_up(end)
        self._buffer, self._at = self._buffer[end:], _At.AFTER
        return list(self._admitted(calls))

    def _give_up(self, end: int) -> list[ParsedPart]:
        """So far it was text."""
        text, self._buffer, self._at = self._buffer[:end], self._buffer[end:], _At.TEXT
        return [text]

    def _admitted(self, calls: list[Call]) -> list[Call]:
        if self._left is None:
            return calls
        admitted = calls[: self._left]
        self._left -= len(admitted)
        return admitted

    def _after(self, final: bool) -> list[ParsedPart] | None:
        text, closing = self._buffer.lstrip(), self._form.closing
        if closing.startswith(text) and text != closing and not final:
            return None
        self._buffer, self._at = text.removeprefix(closing), _At.GAP
        return []

    def _gap(self, final: bool) -> list[ParsedPart] | None:
        self._buffer = self._buffer.lstrip()
        if not self._buffer:
            return [] if final else None
        self._at = _At.BEGINNING if self._form.bare else _At.TEXT
        return []


class Balance:
    """Finds where a JSON object or list ends in a text that grows, at the cost of what is new."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._seen = 0  # characters, from its beginning

    def end(self, text: str, start: int) -> int | None:
        """Behind its last bracket; `start` is where it begins."""
        while (mark := _MARKS.search(text, start + self._seen)) is not None:
            self._seen = mark.end() - start
            character = mark[0]
            if character == '"':
                self._in_string = not self._in_string
            elif character == "\\":
                self._seen += self._in_string  # what follows stands for itself
            elif not self._in_string:
                self._depth += 1 if character in "{[" else -1
                if self._depth == 0:
                    return mark.end()
        self._seen = max(self._seen, len(text) - start)
        return None


def _joined(pieces: list[ParsedPart]) -> list[ParsedPart]:
    """Text that follows text is one piece."""
    joined: list[ParsedPart] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
