"""What a round costs beside its sampling, as `make steering` measures it; how much, no test decides."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import steering
from server.api.schemas.responses import RoundGuidance


def test_a_round_is_selected_and_its_trace_written(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[dict[str, Any]] = []
    dump = RoundGuidance.model_dump_json

    def recorded(self: RoundGuidance, **options: Any) -> str:
        written.append(self.model_dump()["round"])
        return dump(self, **options)

    monkeypatch.setattr(RoundGuidance, "model_dump_json", recorded)
    assert all(seconds > 0 for seconds in steering.round_seconds(100))
    assert [round_["chunk"] for round_ in written] == list(range(1, 41))
    for round_ in written:
        assert not round_["truncated"]
        assert [node["fate"] for node in round_["candidates"]].count("kept") == 4
        assert all(node["text"] and node["scores"] for node in round_["candidates"])
    assert all(node["offset"] > 0 and node["parent"] is not None for node in written[-1]["candidates"])
