"""Tiny quantized models, made here by the methods' own packages, as their users make them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from tests.tiny import TEMPLATE, byte_tokenizer, tiny_model

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # bitsandbytes' blocks of four bits are of 64


def _by_transformers(folder: Path, config: Any) -> PreTrainedModel:
    """A model that transformers quantises while it loads it, which it then can save."""
    plain = folder / "plain"
    tiny_model(**WIDE).save_pretrained(plain)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=config, dtype=torch.float32
    )
    return model


def _torchao(folder: Path) -> PreTrainedModel:
    from torchao.quantization import Int8WeightOnlyConfig

    return _by_transformers(folder, TorchAoConfig(Int8WeightOnlyConfig()))


def _torchao_dynamic(folder: Path) -> PreTrainedModel:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return _by_transformers(folder, TorchAoConfig(Int8DynamicActivationInt8WeightConfig()))


def _bitsandbytes_8bit(folder: Path) -> PreTrainedModel:
    return _by_transformers(folder, BitsAndBytesConfig(load_in_8bit=True))


def _bitsandbytes_4bit(folder: Path) -> PreTrainedModel:
    types = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    return _by_transformers(folder, BitsAndBytesConfig(load_in_4bit=True, **types))


def _compressed_tensors(folder: Path, preset: str) -> Path:
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationStatus,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    model = tiny_model(**WIDE)
    scheme = preset_name_to_scheme(preset, ["Linear"])
    if scheme.weights.group_size:
        scheme.weights.group_size = 32
    groups = {"group_0": scheme}
    apply_quantization_config(
        model,
        QuantizationConfig(config_groups=groups, ignore=["lm_head"], quantization_status=QuantizationStatus.FROZEN),
    )
    for module in model.modules():
        own = getattr(module, "quantization_scheme", None)
        if own is not None:
            size = own.weights.group_size
            rows = module.weight.detach().unflatten(1, (-1, size)) if size else module.weight.detach()[:, None]
            module.weight_scale.data.copy_(calculate_qparams(rows.amin(2), rows.amax(2), own.weights)[0])
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return folder


def _fp8(folder: Path) -> Path:
    """As DeepSeek and Qwen publish theirs: weights in float8 with a scale for each block. It needs no package."""
    tiny_model(**WIDE).to(torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, weight in list(tensors.items()):
        if name.endswith("proj.weight"):
            scale = weight.float().abs().amax() / 448
            tensors[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale.reshape(1, 1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return claim(folder, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]})


KINDS: dict[str, tuple[str | None, Callable[[Path], PreTrainedModel | Path]]] = {
    "bitsandbytes-8bit": ("bitsandbytes", _bitsandbytes_8bit),
    "bitsandbytes-4bit": ("bitsandbytes", _bitsandbytes_4bit),
    "torchao-int8": ("torchao", _torchao),
    "torchao-int8-dynamic": ("torchao", _torchao_dynamic),
    "compressed-tensors-w8a8": ("compressed_tensors", lambda folder: _compressed_tensors(folder, "W8A8")),
    "compressed-tensors-w4a16": ("compressed_tensors", lambda folder: _compressed_tensors(folder, "W4A16")),
    "compressed-tensors-fp8": ("compressed_tensors", lambda folder: _compressed_tensors(folder, "FP8_DYNAMIC")),
    "fp8": (None, _fp8),
}  # the module that each needs


def save_quantized(folder: Path, kind: str) -> Path:
    """A folder with a tiny Llama of a kind, and its tokenizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the methods' packages
        made = KINDS[kind][1](folder)
        if isinstance(made, PreTrainedModel):
            made.save_pretrained(folder)
    byte_tokenizer(TEMPLATE).save_pretrained(folder)
    return folder


def claim(folder: Path, quantization: dict[str, Any]) -> Path:
    """Makes the `config.json` of a folder say that its model is quantized so."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": quantization}))
    return folder
