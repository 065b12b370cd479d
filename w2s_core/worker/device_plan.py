"""Device plan: a model over several devices of one worker, a range of its layers on each.

Whatever is not a layer (embeddings, the last norm, the head) is on the first device. So a step's inputs and its logits
are there, wherever its layers are, and only hidden states travel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from accelerate.utils import send_to_device

_STEPS = 40  # halvings of the interval in which the smallest sufficient share of memory is sought


class NoRoomError(Exception):
    """The devices together have too little memory for the weights."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a model's weights: `layers`, in order, whose modules are `prefix`.0 and so on, and all `others`."""

    prefix: str
    layers: tuple[int, ...]
    others: int


def plan_layers(layers: Sequence[int], others: int, free: Sequence[int]) -> list[int]:
    """The device, by its number, of every layer. The devices take the layers in order, each a range of them.

    `layers` and `others` are bytes of weights, and `free` those of each device; `others` are on the first. The largest
    share of its free memory that a device fills is as small as it can be, to a part in a million.

    Raises NoRoomError.
    """
    low, high = 0.0, 1.0
    best = _fill(layers, others, free)
    if best is None:
        raise NoRoomError
    for _ in range(_STEPS):
        middle = (low + high) / 2
        plan = _fill(layers, others, [room * middle for room in free])
        if plan is None:
            low = middle
        else:
            best, high = plan, middle
    return best


def _fill(layers: Sequence[int], others: int, room: Sequence[float]) -> list[int] | None:
    """Fills one device after the other. None if that is not enough."""
    plan: list[int] = []
    device, used = 0, float(others)
    if used > room[0]:
        return None
    for size in layers:
        while used + size > room[device]:
            device, used = device + 1, 0.0
            if device == len(room):
                return None
        used += size
        plan.append(device)
    return plan


def device_map(
    model: torch.nn.Module, prefix: str, layers: Sequence[torch.device], first: torch.device
) -> dict[str, torch.device]:
    """A device for every module of the model: its layers' are given, everything else is on the `first` device.

    The names cover all weights and no name is inside another's module. Modules that hold layers are not named.
    """
    parts = prefix.split(".")
    above = {".".join(parts[:size]) for size in range(len(parts) + 1)}
    devices = {f"{prefix}.{i}": device for i, device in enumerate(layers)}
    for name in above:
        holder = model.get_submodule(name)
        children = [child for child, _ in holder.named_children()] if name != prefix else []
        own = [tensor for tensor, _ in (*holder.named_parameters(recurse=False), *holder.named_buffers(recurse=False))]
        for child in (*children, *own):
            full = f"{name}.{child}" if name else child
            if full not in above:
                devices[full] = first
    return devices


def send_inputs(model: torch.nn.Module, devices: Mapping[str, torch.device]) -> None:
    """Makes every module of the plan send its inputs to its device before it runs.

    It takes the place of the hooks with which transformers loads a model on several devices. Those are on every module
    in a layer, which then may not be replaced, and put the inputs of the whole model on any of the devices.
    """
    remove_hook_from_module(model, recurse=True)
    for name, device in devices.items():
        if not isinstance(module := _attribute(model, name), torch.Tensor):
            module.register_forward_pre_hook(partial(_send, device), with_kwargs=True)


def _send(
    device: torch.device, _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return send_to_device(args, device), send_to_device(kwargs, device)


def _attribute(model: torch.nn.Module, name: str) -> torch.nn.Module | torch.Tensor:
    holder, _, last = name.rpartition(".")
    found: torch.nn.Module | torch.Tensor = getattr(model.get_submodule(holder), last)
    return found


def measure(model: torch.nn.Module, layers: int, total: int | None = None) -> Weights | None:
    """The bytes of a model's weights, which need not be loaded. None if the list of its `layers` is not found.

    `total` are the bytes of all weights in the model's files, where they are quantized: what is not in a layer is not.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == layers:
            sizes = [_bytes(layer) for layer in module]
            others = _bytes(model) - sum(sizes)
            if total is not None:
                sizes = [max(1, total - others) * size // max(1, sum(sizes)) for size in sizes]
            return Weights(name, tuple(sizes), others)
    return None


def _bytes(module: torch.nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())
