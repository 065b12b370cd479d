"""A body's guidance: it overrides the served model's key by key, and cannot guide without pairs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.api.test_requests import BOTH, Asker
from tests.server.api.test_requests import ask as ask  # noqa: PLC0414  (a fixture)
from w2s_core.types import Guidance


@BOTH
@pytest.mark.parametrize("weight", [1e308, -1e308, 1e6 + 1])
async def test_a_weight_cannot_make_a_score_infinite(ask: Asker, endpoint: str, weight: float) -> None:
    assert await ask.refused(endpoint, guidance={"pairs": {"positive": weight}}) == "guidance.pairs.positive"
    assert (await ask.asked(endpoint, guidance={"pairs": {"positive": 1e6, "polite": -1e6}})).guidance is not None


@BOTH
@pytest.mark.parametrize(
    ("model", "asked", "effective"),
    [
        ("plain", None, None),
        ("steered", None, None),  # the engine takes the served model's own
        ("steered", {"beam_width": 2}, Guidance("cbs", {"positive": 1.0}, 2, 4, 5)),
        ("steered", {"trace": True}, Guidance("cbs", {"positive": 1.0}, 4, 4, 5, trace=True)),
        ("steered", {"trace": "stream"}, Guidance("cbs", {"positive": 1.0}, 4, 4, 5, trace="stream")),
        ("steered", {"pairs": {"polite": -0.5}}, Guidance("cbs", {"polite": -0.5}, 4, 4, 5)),
        ("steered", {"pairs": {"polite": 2}}, Guidance("cbs", {"polite": 2.0}, 4, 4, 5)),
        ("steered", {}, Guidance("cbs", {"positive": 1.0}, 4, 4, 5)),
        ("plain", {"pairs": {"positive": 1.0}}, Guidance("cbs", {"positive": 1.0}, 4, 4, 5)),
        ("plain", {"method": "none"}, Guidance("none")),
        ("steered", {"method": "none"}, Guidance("none", {"positive": 1.0}, 4, 4, 5)),
        ("steered", {"method": "best_of_n", "successors": 9}, Guidance("best_of_n", {"positive": 1.0}, 4, 9, 5)),
        ("best", None, None),
    ],
)
async def test_the_bodys_guidance_lies_over_the_models(
    ask: Asker, endpoint: str, model: str, asked: Any, effective: Guidance | None
) -> None:
    stream = asked is not None and asked.get("trace") == "stream"
    assert (await ask.asked(endpoint, model=model, guidance=asked, stream=stream)).guidance == effective


@BOTH
@pytest.mark.parametrize("changes", [{}, {"stream": False}, {"stream": None}])
async def test_only_a_stream_can_have_its_search_streamed(ask: Asker, endpoint: str, changes: dict[str, Any]) -> None:
    assert await ask.refused(endpoint, guidance={"trace": "stream"}, **changes) == "guidance.trace"


@pytest.mark.parametrize("trace", ["Stream", "true", 1, []])
async def test_another_trace_is_told_the_three_that_there_are(ask: Asker, trace: object) -> None:
    response = await ask.post("completions", guidance={"trace": trace})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "guidance.trace")
    assert 'must be true, false or "stream"' in response.json()["error"]["message"]
