"""Tree attention through transformers' own extension point: the models run as their authors wrote them.

One forward runs a flat batch (1, N) of new tokens of many sessions. The registered function receives their queries
(1, heads, N, dim) and keys and values (1, kv_heads, N, dim), already rotated for their positions. It writes keys and
values into the cache and lets each session's tokens attend to the session's region under its mask.
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

from w2s_core.worker.kv_cache import KVCache
from w2s_core.worker.transfer import moved

TREE_ATTENTION = "w2s_tree"


@dataclass(slots=True)
class AttentionSegment:
    """One session's share of a step: tokens [first, first + count) attend to slots [start, start + keys).

    `visible` (count, keys) tells what each token may see; `positions` (count,) and `depths` (keys,) where in the text
    the tokens and the slots stand, for models that look back only so far.
    """

    first: int
    count: int
    start: int
    keys: int
    visible: npt.NDArray[np.bool_]
    positions: npt.NDArray[np.int64]
    depths: npt.NDArray[np.int64]
    device: torch.device
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask (count, keys), made once per step: 0 where visible and less than `window` back, else −inf."""
        mask = self._masks.get(window)
        if mask is None:
            visible = self.visible
            if window is not None:
                visible = visible & (self.positions[:, None] - self.depths < window)
            values = np.where(visible, np.float32(0), np.float32("-inf"))
            mask = self._masks[window] = moved(torch.from_numpy(values), self.device).to(dtype)
        return mask


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """One forward's business with the cache. `slots` (N,) are where the new tokens' KV goes, in the whole pool."""

    cache: KVCache
    slots: torch.Tensor
    parts: Sequence[AttentionSegment]


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    *,
    tree_step: AttentionStep,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """(1, N, heads, dim). The model's own mask is None: the step knows better."""
    key_rows, value_rows = key[0].transpose(0, 1), value[0].transpose(0, 1)
    layer: int = module.layer_idx  # type: ignore[assignment]
    keys, values = tree_step.cache.layer(layer, key_rows, value_rows)
    keys.index_copy_(0, tree_step.slots, key_rows)
    values.index_copy_(0, tree_step.slots, value_rows)
    outputs = []
    for part in tree_step.parts:
        q = query[:, :, part.first : part.first + part.count]
        k = keys[part.start : part.start + part.keys].transpose(0, 1)[None]
        v = values[part.start : part.start + part.keys].transpose(0, 1)[None]
        mask = part.mask(sliding_window, query.dtype)
        if softcap is None:
            out = _attended(q, k, v, mask, scaling)
        else:
            out = _softcapped(q, k, v, mask, scaling=scaling, cap=softcap)
        outputs.append(out.transpose(1, 2))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), None


def _attended(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    groups = q.shape[1] // k.shape[1]
    if q.device.type != "cpu" and groups > 1:  # no GPU kernel but the slowest takes a mask and shared heads
        k, v, groups = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), 1
    return scaled_dot_product_attention(q, k, v, attn_mask=mask[None, None], scale=scaling, enable_gqa=groups > 1)


def _softcapped(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, *, scaling: float | None, cap: float
) -> torch.Tensor:
    """Gemma 2's attention: scores squashed to (−cap, cap) before the mask."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / cap) * cap + mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


AttentionInterface.register(TREE_ATTENTION, tree_attention)
