"""The floor of a step is taken from the step's own linear layers, on the inputs that they had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.step_floor import Steps, measure
from tests.tiny import save_tiny, tiny_model
from w2s_core.worker.loading import make_runner


@pytest.mark.parametrize("there", [True, False])
def test_each_number_of_rows_has_a_line_for_each_quantization(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: there)
    lines = measure(str(save_tiny(tmp_path)), (1, 18), repeats=1, threads=1)
    assert {line[0] for line in lines} == {"1", "18"}
    assert {line[1] for line in lines} == ({"none", "int8"} if there else {"none"})


def test_the_floor_runs_every_linear_layer_once_on_all_rows() -> None:
    runner, _ = make_runner(tiny_model(), torch.device("cpu"), 10**7)
    steps, ran = Steps(runner, 18), []
    alone = steps.linear_layers()
    layers = [module for module in runner.base.model.modules() if type(module) is torch.nn.Linear]
    for layer in layers:
        layer.register_forward_hook(lambda own, _inputs, outputs: ran.append((own, outputs.shape[1])))
    alone()
    assert ran == [(layer, 18) for layer, _ in ran]
    assert {id(layer) for layer, _ in ran} == {id(layer) for layer in layers}
    assert len(ran) == len(layers)
    steps.close()
