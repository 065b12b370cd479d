"""A minute of what `python -m tests.mixed_load` does for ten; and that it would notice."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.mixed_load import GROWTH_MIB, Resources, Round, faults, run
from tests.traffic import Ending

BASELINE = Resources(tasks=4, threads=10, files=11, processes=2, server=170.0, workers=2500.0)
WELL = Ending("stream", "1", began=True, whole=True, status=200, seconds=1.0)


def rounds(*resources: Resources, ending: Ending = WELL) -> list[Round]:
    return [Round([ending], 1, now) for now in resources]


def test_it_notices_what_must_not_be() -> None:
    fine = rounds(*[BASELINE] * 4)
    assert faults(fine, restarts=4) == []
    assert faults(fine, restarts=5), "a worker died by itself"
    for status, detail in ((500, "internal_error"), (None, "TimeoutError: "), (200, "no [DONE]"), (429, "full")):
        bad = replace(WELL, status=status, whole=False, detail=detail)
        assert len(faults(rounds(BASELINE, ending=bad), restarts=1)) == 1
    assert not faults(rounds(BASELINE, ending=replace(WELL, status=503, whole=False)), restarts=1)
    for name in ("tasks", "threads", "files", "processes"):
        left = replace(BASELINE, **{name: getattr(BASELINE, name) + 1})
        assert len(faults(rounds(BASELINE, BASELINE, left), restarts=3)) == 1
    grown = [replace(BASELINE, server=170.0 + i * (GROWTH_MIB + 1)) for i in range(5)]
    assert len(faults(rounds(*grown), restarts=5)) == 1


@pytest.mark.slow
def test_a_minute_of_everything_leaves_nothing_behind() -> None:
    _, wrong = asyncio.run(run(seconds=60, rounds=3, variables={}))
    assert not wrong
