"""LoRA adapters of tiny models, made by PEFT, and the same models with merged weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.tiny import TEMPLATE, byte_tokenizer


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
