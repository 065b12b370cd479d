"""The playground draws a large search while it streams; how smoothly, `make frames` tells, and no test decides."""

from __future__ import annotations

import pytest

from benchmarks import frames
from benchmarks.chromium import MISSING, find_chromium
from server.api.schemas.responses import SearchRound
from server.commands.trace_file import SavedSearch

_BLOCKED_MS = 300
_BLOCK = f"""
requestAnimationFrame((now) => {{
  const end = performance.now() + {_BLOCKED_MS};
  while (performance.now() < end);
}});
"""


async def test_sixty_rounds_of_sixty_four_candidates_are_drawn_and_a_slow_frame_is_seen(
    monkeypatch: pytest.MonkeyPatch, record_property: pytest.RecordProperty
) -> None:
    if find_chromium() is None:
        pytest.skip(MISSING)
    monkeypatch.setattr(frames, "_WATCH", frames._WATCH + _BLOCK)
    measured = await frames.measure(pause_s=0.0)
    record_property("longest_frame_ms", measured.longest_ms)
    assert measured.candidates == 60 * 64
    assert measured.frames > 2
    assert measured.longest_ms >= measured.p99_ms > 0
    assert measured.longest_ms >= _BLOCKED_MS
    assert measured.long_frames_ms[0] >= _BLOCKED_MS
    assert measured.long_frames_ms == sorted(measured.long_frames_ms, reverse=True)


def test_the_rounds_are_those_of_a_search() -> None:
    """Each is as the API sends it, continues the one before, and keeps its best candidates."""
    search, parents = SavedSearch(), None
    for number, chunk in enumerate(frames.rounds(5, 16, 4), start=1):
        round_ = SearchRound.model_validate(chunk["guidance"]["round"])
        assert round_.chunk == number
        search.add(round_.candidates or [])
        candidates = search.rounds[-1]
        assert len(candidates) == 16
        assert {candidate.parent for candidate in candidates} == (parents or {None})
        parents = {i for i, candidate in enumerate(candidates) if candidate.fate == "kept"}
        assert parents == {*sorted(range(16), key=lambda i: candidates[i].rank)[-4:]}
        assert {len(candidate.text) for candidate in candidates} == {25 * number}
