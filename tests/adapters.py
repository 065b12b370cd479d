"""LoRA adapters of tiny models, and the same models with merged weights: folders, made by PEFT, and in memory."""

from __future__ import annotations

import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tests.tiny import TEMPLATE, byte_tokenizer
from w2s_core.pool.specs import AdapterSpec
from w2s_core.worker.lora import LoRAAdapter


def save_adapter(folder: Path, base: Path, *, seed: int = 0, rank: int = 4, **options: Any) -> Path:
    """A folder with an adapter of all linear layers of `base`, with random A and B. `options`: `LoraConfig`'s."""
    options = {"target_modules": "all-linear", "lora_alpha": 8, "task_type": "CAUSAL_LM"} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of GPT-2's layers, and of embeddings that are saved
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=rank, **options))
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(str(folder))
    return folder


def save_merged(folder: Path, base: Path, adapter: Path) -> Path:
    """A folder with the model of which `adapter` is the difference from `base`, by PEFT's merge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
        merged.merge_and_unload().save_pretrained(folder)
    byte_tokenizer(TEMPLATE).save_pretrained(folder)
    return folder


def random_adapter(model: PreTrainedModel, seed: int, *, rank: int = 4, head: bool = False) -> LoRAAdapter:
    """An adapter of all linear layers of the model, of the one that makes logits only with `head`."""
    random = torch.Generator().manual_seed(seed)
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and (head or name != "lm_head"):
            outputs, inputs = module.weight.shape if isinstance(module, torch.nn.Linear) else module.weight.shape[::-1]
            a, b = torch.randn(rank, inputs, generator=random), torch.randn(outputs, rank, generator=random)
            layers[name] = 0.1 * a, 0.1 * b
    return LoRAAdapter(AdapterSpec("pairs.p.tuned", f"/adapters/{seed}"), layers)


def merged(model: PreTrainedModel, adapter: LoRAAdapter) -> PreTrainedModel:
    """A copy of the model with the adapter's changes in its weights."""
    copy = deepcopy(model)
    with torch.no_grad():
        for name, (a, b) in adapter.layers.items():
            module, change = copy.get_submodule(name), b @ a
            assert isinstance(module.weight, torch.Tensor)
            module.weight += change.T if isinstance(module, Conv1D) else change
    return copy
