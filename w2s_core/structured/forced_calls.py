"""Reads calls out of a text that a grammar holds to calls (`w2s_core.structured.tool_grammar`), while it grows.

There every `{` that stands outside of a call begins one, its name first: so the name is told as soon as it is there,
and the arguments as they come, letter by letter as the model writes them. What is told is final.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from w2s_core.structured.tool_parsing import ArgumentsDelta, Balance, CallStart, ParsedPart

_HEAD = re.compile(r'[^{]*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class ForcedCallParser:
    """One answer's. `known` are the names of the tools. A text that is cut off within the arguments leaves a call whose
    arguments are cut off, as at OpenAI; one that holds no call, because it ends too early, is told as text."""

    def __init__(self, known: Collection[str]) -> None:
        self._known = known
        self._buffer = ""
        self._called = False
        self._balance: Balance | None = None  # of the arguments that are being read
        self._told = 0  # of their characters

    def feed(self, text: str) -> list[ParsedPart]:
        """What has become certain."""
        self._buffer += text
        pieces: list[ParsedPart] = []
        while (found := self._begin() if self._balance is None else self._go_on(self._balance)) is not None:
            pieces.append(found)
        return pieces

    def finish(self) -> list[ParsedPart]:
        """The rest: there is no more text."""
        rest, self._buffer = self._buffer, ""
        return [] if self._called or not rest else [rest]

    def _begin(self) -> CallStart | None:
        head = _HEAD.match(self._buffer)
        if head is None or head[1] not in self._known:
            return None
        self._buffer = self._buffer[head.end() :]
        self._balance, self._told, self._called = Balance(), 0, True
        return CallStart(head[1])

    def _go_on(self, balance: Balance) -> ArgumentsDelta | None:
        end = balance.end(self._buffer, -self._told)
        part = self._buffer[:end]
        self._buffer = self._buffer[len(part) :]
        self._told += len(part)
        if end is not None:
            self._balance = None
        return ArgumentsDelta(part) if part else None
