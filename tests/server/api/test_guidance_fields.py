"""A body's guidance: it overrides the served model's key by key, and cannot guide without pairs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.api.test_requests import BOTH, Asker
from tests.server.api.test_requests import ask as ask  # noqa: PLC0414  (a fixture)
from w2s_core.types import Guidance


@BOTH
@pytest.mark.parametrize(
    ("model", "asked", "effective"),
    [
        ("plain", None, None),
        ("steered", None, None),  # the engine takes the served model's own
        ("steered", {"beam_width": 2}, Guidance("cbs", {"positive": 1.0}, 2, 4, 5)),
        ("steered", {"trace": True}, Guidance("cbs", {"positive": 1.0}, 4, 4, 5, trace=True)),
        ("steered", {"pairs": {"polite": -0.5}}, Guidance("cbs", {"polite": -0.5}, 4, 4, 5)),
        ("steered", {"pairs": {"polite": 2}}, Guidance("cbs", {"polite": 2.0}, 4, 4, 5)),
        ("steered", {}, Guidance("cbs", {"positive": 1.0}, 4, 4, 5)),
        ("plain", {"pairs": {"positive": 1.0}}, Guidance("cbs", {"positive": 1.0}, 4, 4, 5)),
        ("plain", {"method": "none"}, Guidance("none")),
        ("steered", {"method": "none"}, Guidance("none", {"positive": 1.0}, 4, 4, 5)),
        ("steered", {"method": "best_of_n", "successors": 9}, Guidance("best_of_n", {"positive": 1.0}, 1, 9, 5)),
        ("best", None, Guidance("best_of_n", {"positive": 1.0}, 1, 8, 5)),
    ],
)
async def test_the_bodys_guidance_lies_over_the_models(
    ask: Asker, endpoint: str, model: str, asked: Any, effective: Guidance | None
) -> None:
    assert (await ask.asked(endpoint, model=model, guidance=asked)).guidance == effective


@BOTH
async def test_best_of_n_keeps_as_many_as_are_returned(ask: Asker, endpoint: str) -> None:
    guidance = (await ask.asked(endpoint, model="best", n=3)).guidance
    assert guidance is not None
    assert (guidance.beam_width, guidance.successors) == (3, 8)


@BOTH
async def test_pairs_emptied_by_the_body_cannot_guide(ask: Asker, endpoint: str) -> None:
    assert await ask.refused(endpoint, model="steered", guidance={"pairs": {}}) == "guidance.pairs"
