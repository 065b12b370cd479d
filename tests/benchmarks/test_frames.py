"""The playground draws a large search while it streams; how smoothly, `make frames` tells, and no test decides."""

from __future__ import annotations

import pytest

from benchmarks.chromium import MISSING, find_chromium
from benchmarks.frames import measure, rounds


async def test_sixty_rounds_of_sixty_four_candidates_are_drawn(record_property: pytest.RecordProperty) -> None:
    if find_chromium() is None:
        pytest.skip(MISSING)
    measured = await measure(pause_s=0.0)
    record_property("longest_frame_ms", measured.longest_ms)
    assert measured.candidates == 60 * 64
    assert measured.frames > 0
    assert measured.longest_ms >= measured.p99_ms > 0


def test_the_rounds_are_a_tree() -> None:
    first, second, _ = (chunk["guidance"]["round"]["candidates"] for chunk in rounds(3, 16, 4))
    assert all(candidate["parent"] is None for candidate in first)
    kept = {candidate["id"] for candidate in first if candidate["fate"] == "kept"}
    assert len(kept) == 4
    assert {candidate["parent"] for candidate in second} == kept
