"""Session grids: which sessions of a step attend jointly, and the tensors for it (see `joint_attention`).

On a GPU they do where several have a few tokens each, as in a decode step. On a CPU every session attends alone: there
a product over padding costs what it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from w2s_core.worker.attention import AttentionSegment, AttentionStep
from w2s_core.worker.joint_attention import SessionGrid
from w2s_core.worker.transfer import to_device

# None of these limits has been measured on a GPU yet.
_MOST_TOKENS = 32  # of a session: a longer slice of a prompt is work enough for a call of its own, without padding
_MOST_PAIRS = 1 << 21  # of a token and a slot, padding included: the mask is made on the host, 2 MB and 1 ms by then
_MOST_SLOTS = 1 << 17  # gathered in every layer: 0.5 GB at 4 KB per slot, which an H100 reads and writes in 0.3 ms
_ALIGNMENT = 8  # CUDA's memory-efficient kernel copies a mask whose rows are not a multiple of so many elements


@dataclass(frozen=True, slots=True)
class GridShape:
    """The sizes of a grid: its sessions, and the tokens and the slots that each of them has, padding included."""

    sessions: int
    tokens: int
    keys: int

    @property
    def worthwhile(self) -> bool:
        """Whether joint attention of this size costs less than the calls that it saves."""
        pairs = self.sessions * self.tokens * self.keys
        return pairs <= _MOST_PAIRS and self.sessions * self.keys <= _MOST_SLOTS


def attend_jointly(step: AttentionStep) -> AttentionStep:
    """The same step, in which sessions attend jointly where that is worthwhile."""
    short = [segment for segment in step.segments if segment.count <= _MOST_TOKENS]
    if len(short) < 2:
        return step
    longest = max(segment.keys for segment in short)
    shape = GridShape(len(short), max(segment.count for segment in short), -(-longest // _ALIGNMENT) * _ALIGNMENT)
    if not shape.worthwhile:
        return step
    grid = build_grid(short, shape, len(step.slots), step.cache.padding_slot)
    device = step.slots.device
    return replace(
        step,
        segments=[segment for segment in step.segments if segment.count > _MOST_TOKENS],
        grid=SessionGrid(*(to_device(tensor, device) for tensor in grid.tensors)),
    )


def build_grid(segments: Sequence[AttentionSegment], shape: GridShape, tokens: int, padding_slot: int) -> SessionGrid:
    """The grid of these sessions, on the host. `tokens`: of the step. The grid's other sessions are padding.

    Cells of padding see nothing: what they give is not a number, and no token takes it. Where a session has fewer slots
    than the grid, its first one fills up, unseen: whatever other slots hold, no number of another session enters its
    products.
    """
    queries = np.zeros((shape.sessions, shape.tokens), np.int64)
    cells = np.zeros(tokens, np.int64)
    slots = np.full((shape.sessions, shape.keys), padding_slot, np.int64)
    visible = np.zeros((shape.sessions, shape.tokens, shape.keys), bool)
    positions = np.zeros((shape.sessions, shape.tokens), np.int64)
    key_positions = np.zeros((shape.sessions, shape.keys), np.int64)
    for i, segment in enumerate(segments):
        own, keys = slice(segment.first, segment.first + segment.count), slice(segment.keys)
        queries[i, : segment.count] = np.arange(own.start, own.stop)
        cells[own] = i * shape.tokens + np.arange(segment.count)
        slots[i] = segment.start
        slots[i, keys] += np.arange(segment.keys)
        visible[i, : segment.count, keys] = segment.visible
        positions[i, : segment.count] = segment.positions
        key_positions[i, keys] = segment.key_positions
    arrays = (queries.reshape(-1), cells, slots.reshape(-1), visible, positions, key_positions)
    return SessionGrid(*map(torch.from_numpy, arrays))
