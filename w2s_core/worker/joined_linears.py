"""Joined linear layers: those that read the same inputs, such as Q, K and V or gate and up, become one product.

A step then has fewer operations, and quantization rounds the shared inputs once. The model's own code runs unmodified:
each of its layers becomes a part that hands out its share of the product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# Names of layers within one module, by which transformers' models call what reads the same inputs.
_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def join_linears(model: torch.nn.Module) -> None:
    """Joins the linear layers of a model that read the same inputs. It computes what it did, up to rounding.

    Layers of another class than `torch.nn.Linear`, such as quantized ones, stay as they are.
    """
    for module in list(model.modules()):
        for names in _GROUPS:
            layers = [getattr(module, name, None) for name in names]
            linears = [layer for layer in layers if type(layer) is torch.nn.Linear]
            if len(linears) == len(names) and len({linear.in_features for linear in linears}) == 1:
                joined = JoinedLinears(linears)
                for index, name in enumerate(names):
                    setattr(module, name, LinearPart(joined, index))


class JoinedLinears(torch.nn.Module):
    """Linear layers as one, `linear`, whose outputs are theirs, one behind the other: `sizes` of each."""

    def __init__(self, linears: Sequence[torch.nn.Linear]) -> None:
        super().__init__()
        self.in_features = linears[0].in_features
        self.sizes = [linear.out_features for linear in linears]
        self.linear: Any = _concatenated(linears)  # until its weights are packed or quantized
        self._product = _Product()

    def take(self, part: int, inputs: torch.Tensor) -> torch.Tensor:
        """The outputs of this part for the inputs (…, in_features), which are multiplied when the first one asks."""
        product = self._product
        if inputs is not product.inputs or part not in product.parts:
            product.inputs = inputs
            product.parts = dict(enumerate(self.linear(inputs).split_with_sizes(self.sizes, -1)))
        outputs = product.parts.pop(part)
        if not product.parts:
            product.inputs = None
        return outputs


class _Product:
    """The last product's inputs and those of its parts that are still to be taken, by their index."""

    __slots__ = ("inputs", "parts")

    def __init__(self) -> None:
        self.inputs: torch.Tensor | None = None
        self.parts: dict[int, torch.Tensor] = {}


def _concatenated(linears: Sequence[torch.nn.Linear]) -> torch.nn.Linear:
    first, biased = linears[0], any(linear.bias is not None for linear in linears)
    weight = torch.cat([linear.weight.detach() for linear in linears])
    whole = torch.nn.Linear(first.in_features, len(weight), bias=biased, device="meta")
    whole.weight = torch.nn.Parameter(weight, requires_grad=False)
    if biased:
        biases = [weight.new_zeros(o.out_features) if o.bias is None else o.bias.detach() for o in linears]
        whole.bias = torch.nn.Parameter(torch.cat(biases), requires_grad=False)
    return whole


class LinearPart(torch.nn.Module):
    """One of the layers that have been joined: a linear layer to the model's code."""

    def __init__(self, joined: JoinedLinears, index: int) -> None:
        super().__init__()
        self.joined = joined
        self.in_features, self.out_features = joined.in_features, joined.sizes[index]
        self._index = index

    @property
    def weight(self) -> torch.Tensor:
        """(out_features, in_features): the layer's rows of the joined weights."""
        first = sum(self.joined.sizes[: self._index])
        weight: torch.Tensor = self.joined.linear.weight[first : first + self.out_features]
        return weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.joined.take(self._index, inputs)
