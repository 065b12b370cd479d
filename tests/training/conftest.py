"""Data and tiny base models for trainings that take a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save_tiny
from w2s_core.training.settings import TrainingSettings

Write = Callable[..., str]
GOOD, BAD = "aabb", "ddcc"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("base") / "tiny"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def lines(*records: Any) -> str:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
        return str(path)

    return lines


def comparisons(count: int = 24) -> list[dict[str, str]]:
    return [{"prompt": f"Say {i}:", "chosen": GOOD * (1 + i % 3), "rejected": BAD * (1 + i % 3)} for i in range(count)]


@pytest.fixture
def settings(base: str, tmp_path: Path, write: Write) -> Callable[..., TrainingSettings]:
    """Settings on 24 comparisons, eight of which are held out, with others in place of the defaults."""
    data = write(*comparisons())

    def make(**options: Any) -> TrainingSettings:
        defaults = {
            "base": base,
            "data": data,
            "out": tmp_path / "pair",
            "batch_size": 4,
            "epochs": 2,
            "held_out": 0.33,
        }
        return TrainingSettings(**(defaults | {"learning_rate": 1e-2} | options))

    return make
