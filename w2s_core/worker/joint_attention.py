"""Joint attention: one attention call per layer for many sessions, which are its batch dimension.

A call for each session is many small kernels, between which a GPU waits for Python. Here keys and values of every
session's slots are gathered from the pool, padded to the longest:

    queries  (sessions, kv_heads, groups · tokens, dim)      heads that share keys are rows of one product
    keys     (sessions, kv_heads, keys, dim)                 likewise values
    mask     (sessions, 1, groups · tokens, keys)            the sessions' tree masks, built once per step and window

No session's numbers meet another's, so one whose arithmetic overflows spoils its own answers only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True)
class SessionGrid:
    """Where the tokens and slots of the sessions are in joint attention, as tensors on one device.

    There are C = sessions · tokens cells; one without a token of its session is padding and has any token. `queries`
    (C,) is the token of every cell, and `cells` (N,) the cell of every token: any cell for one that attends otherwise.
    `slots` (sessions · keys,) are slots of the pool. `visible` (sessions, tokens, keys) are the tree masks; `positions`
    (sessions, tokens) and `key_positions` (sessions, keys) are positions in the text.
    """

    queries: torch.Tensor
    cells: torch.Tensor
    slots: torch.Tensor
    visible: torch.Tensor
    positions: torch.Tensor
    key_positions: torch.Tensor
    _masks: dict[tuple[int | None, int, torch.dtype], torch.Tensor] = field(default_factory=dict, init=False)
    _copies: dict[torch.device, SessionGrid] = field(default_factory=dict, init=False)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of its tensors, in the order of the fields."""
        return self.queries, self.cells, self.slots, self.visible, self.positions, self.key_positions

    def on(self, device: torch.device) -> SessionGrid:
        """The grid on a layer's device, copied once per step."""
        if device == self.queries.device:
            return self
        if device not in self._copies:
            self._copies[device] = SessionGrid(*(tensor.to(device, non_blocking=True) for tensor in self.tensors))
        return self._copies[device]

    def gather(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys, values and mask of the attention call.

        `query` (1, heads, N, dim) are the step's, `keys` and `values` (slots, kv_heads, dim) a layer's pools.
        """
        sessions, tokens, count = self.visible.shape
        kv_heads = keys.shape[1]
        groups = query.shape[1] // kv_heads
        rows = query[0].transpose(0, 1).index_select(0, self.queries)
        rows = rows.view(sessions, tokens, kv_heads, groups, -1).permute(0, 2, 3, 1, 4)
        k, v = (
            pool.index_select(0, self.slots).view(sessions, count, kv_heads, -1).transpose(1, 2)
            for pool in (keys, values)
        )
        return rows.reshape(sessions, kv_heads, groups * tokens, -1), k, v, self._mask(window, groups, query.dtype)

    def scatter(self, outputs: torch.Tensor) -> torch.Tensor:
        """The attention call's outputs (sessions, kv_heads, groups · tokens, dim) by token: (1, N, heads, dim)."""
        sessions, tokens, _ = self.visible.shape
        kv_heads, dim = outputs.shape[1], outputs.shape[3]
        by_cell = outputs.view(sessions, kv_heads, -1, tokens, dim).permute(0, 3, 1, 2, 4)
        return by_cell.reshape(sessions * tokens, -1, dim).index_select(0, self.cells)[None]

    def _mask(self, window: int | None, groups: int, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask (sessions, 1, groups · tokens, keys): 0 where visible and less than `window` positions back."""
        key = window, groups, dtype
        if key not in self._masks:
            seen = self.visible
            if window is not None:
                seen = seen & (self.positions[:, :, None] - self.key_positions[:, None] < window)
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            self._masks[key] = mask.repeat(1, groups, 1)[:, None]
        return self._masks[key]
