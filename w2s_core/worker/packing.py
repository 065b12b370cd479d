"""Weight matrices in the order in which the processor's matrix product reads them: laid out once, not at every product.

In float32 the products of a decode step are a sixth to a tenth shorter that way (MKL, 2 cores, 16 to 256 rows), and no
number of rows was slower. torch's own compiler uses the same two operators.
"""

from __future__ import annotations

import torch

_ROWS = 64  # what the layout is tuned for; it is right for any number of rows


def can_pack(model: torch.nn.Module) -> bool:
    """Whether this build of torch can, and the model computes in float32 on the CPU."""
    if not hasattr(torch.ops.mkl, "_mkl_linear"):
        return False
    return all(weight.dtype == torch.float32 and weight.device.type == "cpu" for weight in model.parameters())


def pack_linears(model: torch.nn.Module) -> None:
    """Replaces every Linear. Their weights are given up, but for those that embeddings share."""
    linears = [(name, module) for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    for name, linear in linears:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, PackedLinear(linear))


class PackedLinear(torch.nn.Module):
    """As the Linear that it was made of. `weight` tells shape, type and device; its numbers are not there."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.weight = linear.weight.detach().new_zeros(1).expand(linear.weight.shape)
        self._packed = torch.ops.mkl._mkl_reorder_linear_weight(linear.weight.detach().contiguous(), _ROWS)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.numel() // self.in_features
        if rows == 0:
            return inputs.new_empty(*inputs.shape[:-1], self.out_features)
        outputs: torch.Tensor = torch.ops.mkl._mkl_linear(inputs, self._packed, self.weight, self.bias, rows)
        return outputs
