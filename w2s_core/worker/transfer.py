"""Small lists on their way to the device, which goes on with its work meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def send(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """`values` (N,) on the device. An ordinary copy to a GPU would wait for the kernels before it."""
    return moved(torch.tensor(values, dtype=torch.long), device)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on the device, as `send` does it; on a CPU the tensor itself."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
