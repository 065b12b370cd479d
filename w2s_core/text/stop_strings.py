"""Stop strings: where one ends an answer, and how much of a text to hold back because one may begin there."""

from __future__ import annotations

from collections.abc import Sequence


def find_stop_string(text: str, start: int, stops: Sequence[str]) -> tuple[int, int] | None:
    """Where the first stop string begins and ends that is complete in `text` and ends behind `start`, else None.

    The one that *ends* first wins, of those the longest, so that the answer does not depend on how the text
    was cut into chunks.
    """
    matches = [
        (at + len(stop), -len(stop)) for stop in stops if (at := text.find(stop, max(0, start - len(stop) + 1))) >= 0
    ]
    if not matches:
        return None
    end, length = min(matches)
    return end + length, end


def partial_stop_length(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop string: not yet final."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        tail = text[-size:]
        if any(stop.startswith(tail) for stop in stops):
            return size
    return 0
