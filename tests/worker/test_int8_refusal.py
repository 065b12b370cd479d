"""int8 is refused, by the name of the model that asks for it, on devices that are slow at it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from w2s_core.errors import ConfigurationError
from w2s_core.pool.specs import ModelSpec, WorkerSpec
from w2s_core.worker import loading
from w2s_core.worker.int8 import can_multiply


def test_a_device_other_than_a_cpu_cannot() -> None:
    assert not can_multiply(torch.device("cuda"))


def test_the_model_that_asks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "can_multiply", lambda _: False)
    plain = ModelSpec(str(tmp_path), trust_remote_code=False, key="large_models.a.model")
    asked = ModelSpec(str(tmp_path), trust_remote_code=False, key="pairs.b.tuned", quantization="int8")
    with pytest.raises(ConfigurationError, match=r"^pairs\.b\.tuned: quantization: int8 needs a CPU with VNNI"):
        loading.load_models(WorkerSpec("cpu", "auto", 1, 10**6, {"a": plain, "b": asked}))
