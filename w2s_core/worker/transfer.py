"""Host-to-device copies that do not wait for the device's queued work, and rows picked with such indices."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def long_tensor(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """`values` as an int64 tensor (N,) on the device. An ordinary copy to a GPU would wait for its earlier kernels."""
    return to_device(torch.tensor(values, dtype=torch.long), device)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a host tensor on the device, asynchronous on a GPU; on a CPU the tensor itself."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def select_rows(tensor: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """These rows of a tensor (N, …); the tensor itself, which is not copied, if they are all of its rows in order."""
    in_order = rows == list(range(len(tensor)))
    return tensor if in_order else tensor[long_tensor(rows, tensor.device)]
