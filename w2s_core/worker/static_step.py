"""Static step: a decode step's inputs in buffers of fixed shape and address, padded, so that it can be replayed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from w2s_core.worker.attention import AttentionStep
from w2s_core.worker.batch import Inputs
from w2s_core.worker.joint_attention import SessionGrid
from w2s_core.worker.kv_cache import KVCache
from w2s_core.worker.session_grids import GridShape, build_grid
from w2s_core.worker.transfer import to_device

_MOST_TOKENS = 256
_LEAST_KEYS = 256  # so that short texts share a shape


@dataclass(frozen=True, slots=True)
class StepShape:
    """The shape of a static step: its tokens, each of which may have logits, and the grid of its sessions."""

    tokens: int
    grid: GridShape


def step_shape(inputs: Inputs) -> StepShape | None:
    """The smallest shape, of powers of two, that has room for one model's step. None if it is no decode step.

    A decode step has at most 256 tokens, and logits after most of them, as scoring has, too. Prefill has not.
    """
    [step] = inputs.steps
    tokens, logits = inputs.tokens.shape[1], len(inputs.logits_indices)
    shape = StepShape(
        _power_of_two(tokens),
        GridShape(
            _power_of_two(len(step.segments)),
            _power_of_two(max(segment.count for segment in step.segments)),
            max(_LEAST_KEYS, _power_of_two(max(segment.keys for segment in step.segments))),
        ),
    )
    fits = tokens <= _MOST_TOKENS and _power_of_two(logits) == shape.tokens and shape.grid.worthwhile
    return shape if fits else None


def _power_of_two(number: int) -> int:
    """The least power of two that is not less."""
    return 1 << max(0, number - 1).bit_length()


class StaticStep:
    """The buffers of one shape. All sessions attend jointly.

    A padding token is token 0 at position 0. It is written to the cache's padding slot, which nothing else sees, and
    what it attends to is of no account: no other token sees it, and its logits are dropped.
    """

    def __init__(self, shape: StepShape, cache: KVCache, device: torch.device) -> None:
        self._shape = shape
        self._cache = cache
        self._tokens, self._positions, self._logits_indices, self._slots = (
            torch.empty(shape.tokens, dtype=torch.long, device=device) for _ in range(4)
        )
        grid = build_grid((), shape.grid, shape.tokens, cache.padding_slot)
        self._grid = SessionGrid(*(to_device(tensor, device) for tensor in grid.tensors))

    def fill(self, inputs: Inputs) -> None:
        """Copies the inputs of a step of this shape into the buffers."""
        [step] = inputs.steps
        _fill(self._tokens, inputs.tokens[0], 0)
        _fill(self._positions, inputs.positions[0], 0)
        _fill(self._logits_indices, inputs.logits_indices, 0)
        _fill(self._slots, step.slots, self._cache.padding_slot)
        grid = build_grid(step.segments, self._shape.grid, self._shape.tokens, self._cache.padding_slot)
        for buffer, values in zip(self._grid.tensors, grid.tensors, strict=True):
            buffer.copy_(to_device(values, buffer.device))

    def inputs(self) -> Inputs:
        """The buffers as a forward's inputs. What a forward computes of them and keeps, such as masks, is its own."""
        step = AttentionStep(self._cache, self._slots, (), SessionGrid(*self._grid.tensors))
        return Inputs(self._tokens[None], self._positions[None], self._logits_indices, (step,))


def _fill(buffer: torch.Tensor, values: torch.Tensor, padding: int) -> None:
    buffer[: len(values)] = values
    buffer[len(values) :] = padding
