"""Model placement: the devices that a worker has, and the device map by which transformers loads a model on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils.hub import cached_file

from w2s_core.errors import UnsupportedModelError
from w2s_core.pool.specs import ModelSpec
from w2s_core.worker.device_plan import NoRoomError, device_map, measure, plan_layers

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_GB = 10**9


def check_devices(devices: Sequence[torch.device]) -> None:
    """Raises UnsupportedModelError for a CUDA device that the machine does not have."""
    count = torch.cuda.device_count()
    for device in devices:
        if device.type == "cuda" and (device.index or 0) >= count:
            raise UnsupportedModelError(f"workers.devices: there is no {device} here, but {count} CUDA devices.")


def place(
    spec: ModelSpec, dtype: torch.dtype, devices: Sequence[torch.device], *, quantized: bool
) -> dict[str, torch.device] | None:
    """The device map of a model on several devices, and of a quantized one, which cannot be moved. None for others.

    Raises UnsupportedModelError, which names the model's key, where its weights do not fit the devices' free memory,
    and where its layers are not found.
    """
    if len(devices) == 1:
        return {"": devices[0]} if quantized else None
    config = AutoConfig.from_pretrained(spec.source, trust_remote_code=spec.trust_remote_code)
    kind: Any = AutoModelForCausalLM if spec.reward is None else AutoModelForSequenceClassification
    with torch.device("meta"):
        model = kind.from_config(config, dtype=dtype, trust_remote_code=spec.trust_remote_code)
    weights = measure(
        model, config.get_text_config().num_hidden_layers, _file_bytes(spec.source) if quantized else None
    )
    key = spec.key or spec.source
    names = "+".join(map(str, devices))
    if weights is None:
        raise UnsupportedModelError(f"{key}: the layers of {spec.source} are not found, so it cannot run on {names}.")
    needed = sum(weights.layers) + weights.others
    free = [torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else needed for device in devices]
    try:
        plan = plan_layers(weights.layers, weights.others, free)
    except NoRoomError:
        raise UnsupportedModelError(
            f"{key}: the weights of {spec.source} take {needed / _GB:.1f} GB, and {names} have "
            f"{' + '.join(f'{room / _GB:.1f}' for room in free)} GB free."
        ) from None
    # accelerate takes cpu:0 and cpu for two devices.
    actual = [device if device.type == "cuda" else torch.device(device.type) for device in devices]
    return device_map(model, weights.prefix, [actual[number] for number in plan], actual[0])


def _file_bytes(source: str) -> int | None:
    """The bytes of a model's weights in its files, None where only its config can be had without fetching them."""
    index = cached_file(source, _INDEX, _raise_exceptions_for_missing_entries=False)
    if index is not None:
        total = json.loads(Path(index).read_text(encoding="utf-8")).get("metadata", {}).get("total_size")
        return int(total) if total is not None else None
    weights = Path(source) / _WEIGHTS
    return weights.stat().st_size if weights.is_file() else None
