"""int8 is refused, by the name of the model that asks for it, on devices that are slow at it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from w2s_core.errors import ConfigurationError
from w2s_core.pool.specs import ModelSpec, WorkerSpec
from w2s_core.worker.int8 import can_multiply
from w2s_core.worker.loading import load_models

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("there", [True, False])
def test_a_cpu_needs_vnni_and_nothing_else_can(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: there)
    assert can_multiply(CPU) is there
    assert not can_multiply(GPU)


def test_the_model_that_asks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    plain = ModelSpec(str(tmp_path), trust_remote_code=False, key="large_models.a.model")
    asked = ModelSpec(str(tmp_path), trust_remote_code=False, key="pairs.b.tuned", quantization="int8")
    with pytest.raises(ConfigurationError, match=r"^pairs\.b\.tuned: quantization: int8 needs a CPU with VNNI"):
        load_models(WorkerSpec("cpu", "auto", 1, 10**6, {"a": plain, "b": asked}))
