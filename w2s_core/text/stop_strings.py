"""Stop strings: finds where one ends an answer, and how much text to hold back because one may have begun there."""

from __future__ import annotations

from collections.abc import Sequence


def find_stop_string(text: str, start: int, stops: Sequence[str]) -> tuple[int, int] | None:
    """Finds the first stop string that ends in `text` after `start`. Returns its (begin, end) or None.

    Stop strings are matched in text, so one may span several tokens and chunks. Of several matches the one that *ends*
    first wins, and of those the longest, so that the result does not depend on how the text was cut into chunks.
    """
    matches = [
        (at + len(stop), -len(stop)) for stop in stops if (at := text.find(stop, max(0, start - len(stop) + 1))) >= 0
    ]
    if not matches:
        return None
    end, length = min(matches)
    return end + length, end


def partial_stop_length(text: str, stops: Sequence[str]) -> int:
    """Counts the characters at the end of `text` that may be the beginning of a stop string, and are not yet final."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        tail = text[-size:]
        if any(stop.startswith(tail) for stop in stops):
            return size
    return 0
