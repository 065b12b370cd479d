"""int8 models in a worker: the logits and rewards of rounded layers, with what is not rounded beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.adapters import save_adapter
from tests.tiny import save_tiny, save_tiny_classifier, tiny_classifier
from tests.vnni import vnni
from tests.worker.test_lora import TEXT, logits
from tests.worker.test_reward_model import HEAD
from w2s_core.pool.specs import AdapterSpec, ModelSpec, WorkerSpec
from w2s_core.worker.int8 import Int8Linear, quantize_linears
from w2s_core.worker.loading import load_models
from w2s_core.worker.lora import read_adapter
from w2s_core.worker.model_runner import ModelRunner

__all__ = ["vnni"]  # a fixture
pytestmark = pytest.mark.usefixtures("vnni")


def load(**specs: ModelSpec) -> dict[str, ModelRunner]:
    loaded = load_models(WorkerSpec("cpu", "float32", 1, 10**6, specs))
    return {name: runner for name, (runner, _) in loaded.items()}


def rounded(folder: Path, adapter: Path | None = None) -> PreTrainedModel:
    """transformers' model with each linear layer in int8 by itself, and the adapter's change behind each."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    quantize_linears(model)
    layers = read_adapter(AdapterSpec("pairs.p.tuned", str(adapter))).layers if adapter else {}
    for name, (a, b) in layers.items():
        model.get_submodule(name).register_forward_hook(
            lambda _layer, inputs, outputs, a=a, b=b: outputs + inputs[0] @ a.T @ b.T
        )
    return model


@torch.inference_mode()
def last_logits(model: PreTrainedModel) -> torch.Tensor:
    found: torch.Tensor = model(torch.tensor([TEXT])).logits[:, -1]
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma3"])
def test_an_adapters_change_is_exact_beside_rounded_layers(family: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", family=family)
    folder = save_adapter(tmp_path / "adapter", base)
    plain = ModelSpec(str(base), False, quantization="int8")
    adapted = ModelSpec(str(base), False, quantization="int8", adapter=AdapterSpec("pairs.p.tuned", str(folder)))
    alone, both = load(plain=plain), load(plain=plain, adapted=adapted)
    assert both["plain"].base is both["adapted"].base
    found = logits(both["adapted"])
    torch.testing.assert_close(found, last_logits(rounded(base, folder)), rtol=0, atol=1e-3)
    assert torch.equal(logits(both["plain"]), logits(alone["plain"]))
    exact = load(adapted=ModelSpec(str(base), False, adapter=AdapterSpec("pairs.p.tuned", str(folder))))
    assert (found - logits(exact["adapted"])).abs().max() > 1e-2, "its base is rounded"
    assert (found - logits(both["plain"])).abs().max() > 0.1, "the adapter changes it"


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_reward_models_layers_are_rounded_and_its_head_is_not(family: str, tmp_path: Path) -> None:
    folder = save_tiny_classifier(tmp_path / "model", family=family)
    [runner] = load(m=ModelSpec(str(folder), False, reward=HEAD, quantization="int8")).values()
    assert type(runner.base.model.score) is torch.nn.Linear
    assert any(isinstance(module, Int8Linear) for module in runner.base.model.modules())
    expected = tiny_classifier(family)
    quantize_linears(expected.base_model)
    expected.config.pad_token_id = None
    with torch.inference_mode():
        reward = expected(torch.tensor([TEXT])).logits
    torch.testing.assert_close(logits(runner), reward, rtol=0, atol=1e-3)
