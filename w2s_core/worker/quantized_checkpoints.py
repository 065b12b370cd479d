"""Quantized checkpoints: whether a model whose `config.json` has a `quantization_config` runs here, and why not.

transformers loads them. What it finds out late, or not at all, is checked here before any weights are read, and what
its layers do not read of a checkpoint is an error: it would be a model with random weights.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer

from w2s_core.errors import ConfigurationError, UnsupportedModelError
from w2s_core.pool.specs import ModelSpec

_CONFIG = "quantization_config"
_ACTIVATIONS = re.compile(r"(input|output|activation|k|v|q)_(activation_)?scale")  # which layers may do without


@dataclass(frozen=True, slots=True)
class _Needs:
    """What a method needs: modules that can be imported, how they are installed, and whether it has no CPU kernels."""

    modules: tuple[str, ...] = ()
    install: str = ""
    gpu: bool = False


_OWN = "'w2s-server[quantized]'"
_NEEDS = {
    "bitsandbytes": _Needs(("bitsandbytes",), _OWN),
    "compressed-tensors": _Needs(("compressed_tensors",), _OWN),
    "torchao": _Needs(("torchao",), _OWN),
    "quanto": _Needs(("optimum.quanto",), "optimum-quanto"),
    "gptq": _Needs(("gptqmodel", "optimum"), "gptqmodel optimum"),
    "awq": _Needs(("gptqmodel", "triton"), "gptqmodel triton"),
    "auto-round": _Needs(("auto_round",), "auto-round"),
    "aqlm": _Needs(("aqlm",), "'aqlm[cpu,gpu]'"),
    "quark": _Needs(("quark",), "amd-quark"),
    "sinq": _Needs(("sinq",), "sinq"),
    "hqq": _Needs(("hqq",), "hqq"),
    "fouroversix": _Needs(("fouroversix",), "fouroversix"),
    "eetq": _Needs(("kernels",), "kernels", gpu=True),
    "fbgemm_fp8": _Needs(("fbgemm_gpu",), "fbgemm-gpu", gpu=True),
    "fp_quant": _Needs(("fp_quant",), "fp_quant", gpu=True),
    "higgs": _Needs(("flute", "fast_hadamard_transform"), "flute-kernel fast_hadamard_transform", gpu=True),
    "nvfp4": _Needs(("kernels",), "kernels", gpu=True),
    "spqr": _Needs(("spqr_quant",), "'spqr_quant[gpu]'", gpu=True),
    "vptq": _Needs(("vptq",), "vptq", gpu=True),
}


def check_quantization(spec: ModelSpec, devices: Sequence[torch.device]) -> str | None:
    """The method by which the model is quantized, None if it is not. Reads its `config.json` and nothing else.

    Raises UnsupportedModelError, one line with the model's key and the method, where it cannot run on these devices.
    """
    config = _quantization_config(spec.source)
    if config is None:
        return None
    method = "bitsandbytes" if config.get("load_in_8bit") or config.get("load_in_4bit") else config.get("quant_method")
    known = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZATION_CONFIG_MAPPING}
    if method not in known:
        reason = f"which transformers does not know; it knows {', '.join(sorted(known))}"
        raise _refusal(spec, str(method), reason)
    needs = _NEEDS.get(method, _Needs())
    if needs.gpu and devices[0].type == "cpu":
        raise _refusal(spec, method, "which needs a GPU")
    if missing := [name for name in needs.modules if not _is_installed(name)]:
        packages = " and ".join(f"`{name}`" for name in missing)
        raise _refusal(spec, method, f"which needs {packages}. Install it with: pip install {needs.install}")
    if method == "bitsandbytes":  # it warns of every layer in every step that it computes in float16, as it should
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with naming_quantization(spec, method):
        quantizer = AutoHfQuantizer.from_config(deepcopy(config), pre_quantized=True)
        quantizer.validate_environment(
            device_map={str(i): device for i, device in enumerate(devices)}, weights_only=True
        )
    return str(method)


@contextmanager
def naming_quantization(spec: ModelSpec, method: str | None) -> Iterator[None]:
    """Turns a quantized model's errors into an UnsupportedModelError, one line with the model's key and the method."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:  # a quantizer's packages raise whatever they like
        if method is None:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise _refusal(spec, method, f"which does not run here: {reason.removesuffix('.')}") from error


def check_all_is_read(spec: ModelSpec, method: str, model: PreTrainedModel, unread: Iterable[str]) -> None:
    """Raises UnsupportedModelError if a linear layer left tensors of the checkpoint `unread`: these are its weights."""
    for name in unread:
        layer, _, last = name.rpartition(".")
        module = dict(model.named_modules()).get(layer)
        if hasattr(module, "in_features") and not _ACTIVATIONS.fullmatch(last):
            raise _refusal(spec, method, f"and transformers does not read its `{name}`: this is no such checkpoint")


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether its layers are those of a quantizer. Some methods are unpacked to plain weights while they load."""
    return bool(getattr(model, "is_quantized", False))


def _quantization_config(source: str) -> dict[str, Any] | None:
    config, _ = PretrainedConfig.get_config_dict(source)
    for each in (config, config.get("text_config")):
        if isinstance(each, dict) and isinstance(found := each.get(_CONFIG), dict):
            return found
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _refusal(spec: ModelSpec, method: str, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{spec.key or spec.source}: {spec.source} is quantized by {method} ({_CONFIG} in its config.json), {reason}."
    )
