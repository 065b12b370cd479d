"""Tree attention, registered with transformers' `AttentionInterface`, so that models run unmodified.

One forward runs a flat batch (1, N) of new tokens of many sessions. The attention function receives their queries
(1, heads, N, dim) and their keys and values (1, kv_heads, N, dim), already rotated for their positions. It writes keys
and values into the KV cache and lets each session's tokens attend to the session's region under its tree mask: those
of each session by a call, or those of many by one (see `joint_attention`). Where the forward is one of several models,
which share their weights, each model's tokens have its own cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from w2s_core.worker.branch_attention import Branches, branch_attention
from w2s_core.worker.joint_attention import SessionGrid
from w2s_core.worker.kv_cache import KVCache
from w2s_core.worker.transfer import to_device

TREE_ATTENTION = "w2s_tree"


@dataclass(slots=True)
class AttentionSegment:
    """One session's part of a step: the step's tokens [first, first + count) attend to slots [start, start + keys).

    `visible` (count, keys) is the tree mask. `positions` (count,) and `key_positions` (keys,) are the positions of the
    tokens and of the slots' tokens in their text, for models with a sliding window. `branches`: of tokens that can do
    without most of the mask.
    """

    first: int
    count: int
    start: int
    keys: int
    visible: npt.NDArray[np.bool_]
    positions: npt.NDArray[np.int64]
    key_positions: npt.NDArray[np.int64]
    branches: Branches | None = None
    _masks: dict[tuple[int | None, torch.device], torch.Tensor] = field(default_factory=dict)

    def is_within(self, window: int | None) -> bool:
        """Whether a window of so many tokens hides none that a token would see."""
        return window is None or int(self.positions.max()) < window

    def mask(self, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Additive mask (count, keys): 0 where visible and less than `window` positions back, else −inf.

        Built once per step, window and device; all layers share it.
        """
        mask = self._masks.get((window, device))
        if mask is None:
            visible = self.visible
            if window is not None:
                visible = visible & (self.positions[:, None] - self.key_positions < window)
            values = np.where(visible, np.float32(0), np.float32("-inf"))
            mask = to_device(torch.from_numpy(values), device).to(dtype)
            self._masks[window, device] = mask
        return mask


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """What attention needs for one model's tokens of a forward. `slots` (N,) are the pool's slots to which the new
    tokens' KV is written, on the model's first device. The sessions of `segments` attend one by one, and those of
    `grid` jointly."""

    cache: KVCache
    slots: torch.Tensor
    segments: Sequence[AttentionSegment]
    grid: SessionGrid | None = None
    _copies: dict[torch.device, torch.Tensor] = field(default_factory=dict)

    def slots_on(self, device: torch.device) -> torch.Tensor:
        """`slots` on a layer's device, copied once per step."""
        if device == self.slots.device:
            return self.slots
        if device not in self._copies:
            self._copies[device] = self.slots.to(device, non_blocking=True)
        return self._copies[device]


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    *,
    tree_steps: Sequence[AttentionStep],
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls in every layer. Returns (1, N, heads, dim).

    The model's own mask is ignored; the steps' tree masks replace it. The N tokens are those of the steps, in order.
    """
    key_rows, value_rows = key[0].transpose(0, 1), value[0].transpose(0, 1)
    outputs: list[torch.Tensor] = []
    first = 0
    for step in tree_steps:
        own = slice(first, first + len(step.slots))
        keys, values = step.cache.layer(module.layer_idx, key_rows, value_rows)  # type: ignore[arg-type]
        for pool, rows in ((keys, key_rows), (values, value_rows)):
            pool.index_copy_(0, step.slots_on(pool.device), rows[own])
        parts: list[torch.Tensor] = []
        for segment in step.segments:
            q = query[:, :, first + segment.first : first + segment.first + segment.count]
            region = slice(segment.start, segment.start + segment.keys)
            k, v = keys[region], values[region]
            parts.append(_attend_alone(segment, q, k, v, sliding_window, scaling=scaling, softcap=softcap))
        if step.grid is not None:
            grid = step.grid.on(keys.device)
            gathered = grid.gather(query[:, :, own], keys, values, sliding_window)
            whole = grid.scatter(_masked_attention(*gathered, scaling=scaling, softcap=softcap))
            parts = [_fill_in(whole, step.segments, parts)]
        outputs += parts
        first = own.stop
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), None


def _attend_alone(
    segment: AttentionSegment,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    window: int | None,
    *,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """One session's attention: query (1, heads, count, dim), keys and values (slots, kv_heads, dim) of its region.

    Returns (1, count, heads, dim).
    """
    branches = segment.branches
    if branches is not None and softcap is None and query.dtype == torch.float32 and segment.is_within(window):
        mask = segment.mask(None, query.dtype, query.device)[:, : branches.shared] if branches.masked else None
        return branch_attention(query, keys, values, branches, mask, scaling=scaling)
    k, v = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    mask = segment.mask(window, query.dtype, query.device)[None, None]
    return _masked_attention(query, k, v, mask, scaling=scaling, softcap=softcap).transpose(1, 2)


def _fill_in(whole: torch.Tensor, segments: Sequence[AttentionSegment], parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Puts the outputs of the sessions that attended one by one into those of all tokens, (1, N, heads, dim)."""
    for segment, part in zip(segments, parts, strict=True):
        whole[:, segment.first : segment.first + segment.count] = part
    return whole


def _masked_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    *,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    if softcap is not None:
        return _softcapped_attention(q, k, v, mask, scaling=scaling, cap=softcap)
    groups = q.shape[1] // k.shape[1]
    if q.device.type != "cpu" and groups > 1:  # only the slowest GPU kernel takes a mask with grouped heads
        k, v, groups = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), 1
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=groups > 1)


def _softcapped_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, *, scaling: float | None, cap: float
) -> torch.Tensor:
    """Gemma 2's attention: logits soft-capped to (−cap, cap) before the mask."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / cap) * cap + mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


AttentionInterface.register(TREE_ATTENTION, tree_attention)
