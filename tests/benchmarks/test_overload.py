"""The overload benchmark against a real server with tiny models: its counts, not its speed."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import overload
from benchmarks.settings import Settings
from tests.tiny import save_tiny


def test_from_server_to_table(tmp_path: Path) -> None:
    large, tuned, untuned = (
        str(save_tiny(tmp_path / name, seed=seed, pairs=name != "large"))
        for seed, name in enumerate(("large", "tuned", "untuned"))
    )
    settings = Settings(threads=1, large=large, tuned=tuned, untuned=untuned)
    found = overload.run(settings, tmp_path, seconds=2, tokens=60, storm=60)
    at_capacity, _, storm = found
    assert at_capacity.refused == 0
    assert at_capacity.accepted >= 4
    assert storm.accepted + storm.refused == 120
    for level in found:
        assert level.most_waiting <= 16, "the queue is bounded"
        assert level.chunks > 0
    assert len(json.loads((tmp_path / "overload.json").read_text())["levels"]) == 3
    assert (tmp_path / "overload.md").read_text().count("\n") == 2 + 3
