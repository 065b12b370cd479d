"""Collects one forward's tokens from many sessions' trees, within a bound on their number."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from w2s_core.device.attention import Part, Step
from w2s_core.device.kv_cache import KVCache
from w2s_core.device.token_tree import Node, TokenTree


@dataclass(slots=True)
class _Share:
    """One tree's tokens in the batch: a slice of its prompt, then nodes, ancestors first."""

    prompt_slice: int = 0
    nodes: dict[Node, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Inputs:
    """`tokens` and `positions` (1, N); `wanted` (M,) are the places in N whose logits are asked for."""

    tokens: torch.Tensor
    positions: torch.Tensor
    wanted: torch.Tensor
    step: Step


class Batch:
    """Grows by `request`; `inputs` places the tokens in the cache and is called once.

    After the forward, `wanted[node]` is the row of that node's logits.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._room = limit
        self._shares: dict[TokenTree, _Share] = {}
        self.wanted: dict[Node, int] = {}

    @property
    def trees(self) -> list[TokenTree]:
        return list(self._shares)

    @property
    def size(self) -> int:
        """Tokens so far."""
        return self._limit - self._room

    def request(self, tree: TokenTree, node: Node) -> bool:
        """Asks for the logits behind `node`. What does not fit is cut; False when the node has to wait for its turn."""
        share = self._shares.get(tree)
        if node in self.wanted:
            return True
        if self._room <= 0:
            return False
        if share is None:
            share = self._shares[tree] = _Share(min(self._room, len(tree.prompt) - 1 - tree.prompt_fed))
            self._room -= share.prompt_slice
        if tree.prompt_fed + share.prompt_slice < len(tree.prompt) - 1:
            return False
        new = [n for n in tree.missing(node) if n not in share.nodes][: max(0, self._room)]
        self._room -= len(new)
        share.nodes.update(dict.fromkeys(new))
        if node in share.nodes:
            self.wanted[node] = len(self.wanted)
            return True
        return False

    def inputs(self, cache: KVCache, device: torch.device) -> Inputs:
        """Gives every token its slot. Raises CacheFullError, after which the trees of this batch are unusable."""
        for tree, share in self._shares.items():  # first all slots: growing moves regions
            for node in share.nodes:
                tree.place(node)
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        parts: list[Part] = []
        row_of: dict[Node, int] = {}
        for tree, share in self._shares.items():
            first, start, fed = len(tokens), tree.region.start, tree.prompt_fed
            tokens += tree.prompt[fed : fed + share.prompt_slice]
            positions += range(fed, fed + share.prompt_slice)
            slots += range(start + fed, start + fed + share.prompt_slice)
            for node in share.nodes:
                row_of[node] = len(tokens)
                tokens.append(node.token)
                positions.append(node.depth)
                slots.append(start + node.slot)
            if len(tokens) > first:
                parts.append(_part(tree, share, first, np.array(positions[first:]), device))
            tree.prompt_fed += share.prompt_slice
        return Inputs(
            tokens=torch.tensor([tokens], device=device),
            positions=torch.tensor([positions], device=device),
            wanted=torch.tensor([row_of[node] for node in self.wanted], device=device, dtype=torch.long),
            step=Step(cache, torch.tensor(slots, device=device), parts),
        )


def _part(tree: TokenTree, share: _Share, first: int, positions: np.ndarray, device: torch.device) -> Part:
    keys = tree.top if share.nodes else tree.prompt_fed + share.prompt_slice
    visible = np.zeros((len(positions), keys), bool)
    for i in range(share.prompt_slice):
        visible[i, : tree.prompt_fed + i + 1] = True
    visible[share.prompt_slice :, : len(tree.prompt)] = True
    for i, node in enumerate(share.nodes, start=share.prompt_slice):
        visible[i, tree.path(node)] = True
    distances = positions[:, None] - tree.depths()[None, :keys]
    return Part(
        first=first,
        count=len(positions),
        start=tree.region.start,
        keys=keys,
        visible=torch.from_numpy(visible).to(device),
        distances=torch.from_numpy(distances).to(device),
    )
