"""Collects one forward's tokens from many sessions' trees, within a bound on their number."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from w2s_core.worker.attention import AttentionSegment, AttentionStep
from w2s_core.worker.kv_cache import KVCache
from w2s_core.worker.token_tree import Node, TokenTree
from w2s_core.worker.transfer import send


@dataclass(slots=True)
class _Share:
    """One tree's tokens in the batch: a slice of its prompt, then nodes, ancestors first. Of the slice's last
    `wanted` tokens the logits are asked for."""

    prompt_slice: int = 0
    wanted: int = 0
    nodes: dict[Node, None] = field(default_factory=dict)
    unplaced: int = 0


@dataclass(frozen=True, slots=True)
class Inputs:
    """`tokens` and `positions` (1, N); `wanted` (M,) are the places in N whose logits are asked for."""

    tokens: torch.Tensor
    positions: torch.Tensor
    wanted: torch.Tensor
    step: AttentionStep


class Batch:
    """Grows by `request` to about `limit` tokens; `inputs` places them in the cache and is called once.

    After the forward, `wanted[node]` is the row of that node's logits; those of prompts follow, `prompt_rows`.
    """

    def __init__(self, limit: int) -> None:
        self._room = limit
        self.size = 0  # tokens so far
        self._shares: dict[TokenTree, _Share] = {}
        self.wanted: dict[Node, int] = {}

    @property
    def trees(self) -> list[TokenTree]:
        return list(self._shares)

    @property
    def has_prompts(self) -> bool:
        return any(share.prompt_slice for share in self._shares.values())

    def request(self, tree: TokenTree, node: Node, *, urgent: bool = False) -> bool:
        """Asks for the logits behind `node`. What does not fit is cut; False when the node has to wait for its turn.

        A node that is `urgent` does not count against the limit, only what must be run before it does.
        Raises CacheFullError, having changed nothing.
        """
        if node in self.wanted:
            return True
        share = self._shares.get(tree)
        room = max(0, self._room)
        prompt_slice = share.prompt_slice if share else min(room, len(tree.prompt) - 1 - tree.prompt_fed)
        nodes: list[Node] = []
        if tree.prompt_fed + prompt_slice == len(tree.prompt) - 1:
            missing = [n for n in tree.missing(node) if share is None or n not in share.nodes]
            nodes = missing[: room - (0 if share else prompt_slice) + urgent]
        if not nodes and (share or not prompt_slice):
            return False
        unplaced = sum(not n.fed and n is not tree.root for n in nodes)
        tree.hold((share.unplaced if share else 0) + unplaced)
        if share is None:
            share = self._shares[tree] = _Share(prompt_slice)
            self._take(prompt_slice)
        share.nodes.update(dict.fromkeys(nodes))
        share.unplaced += unplaced
        self._take(len(nodes), free=urgent and node in share.nodes)
        if node in share.nodes:
            self.wanted[node] = len(self.wanted)
        return node in share.nodes

    def request_prompt(self, tree: TokenTree, known: int) -> None:
        """Asks for the logits behind the prompt's next tokens, those after the first `known`, as far as they fit.

        Nothing else may be asked of this tree. Raises CacheFullError, having changed nothing.
        """
        size = min(max(0, self._room), len(tree.prompt) - 1 - tree.prompt_fed)
        if size:
            tree.hold(0)
            self._shares[tree] = _Share(size, wanted=max(0, min(size, tree.prompt_fed + size - known)))
            self._take(size)

    def prompt_rows(self, tree: TokenTree) -> slice:
        """The rows of the logits behind this tree's prompt, one token's after the other's."""
        first = len(self.wanted)
        for other, share in self._shares.items():
            if other is tree:
                return slice(first, first + share.wanted)
            first += share.wanted
        return slice(first, first)

    def _take(self, tokens: int, *, free: bool = False) -> None:
        self.size += tokens
        self._room -= tokens - free

    def inputs(self, cache: KVCache, device: torch.device) -> Inputs:
        """Gives every token its slot, for which there is room."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        parts: list[AttentionSegment] = []
        row_of: dict[Node, int] = {}
        prompt_rows: list[int] = []
        for tree, share in self._shares.items():
            first, start, fed = len(tokens), tree.start, tree.prompt_fed
            tokens += tree.prompt[fed : fed + share.prompt_slice]
            positions += range(fed, fed + share.prompt_slice)
            slots += range(start + fed, start + fed + share.prompt_slice)
            prompt_rows += range(len(tokens) - share.wanted, len(tokens))
            for node in share.nodes:
                row_of[node] = len(tokens)
                tokens.append(node.token)
                positions.append(node.depth)
                slots.append(start + tree.place(node))
            if len(tokens) > first:
                parts.append(_part(tree, share, first, np.array(positions[first:]), device))
            tree.prompt_fed += share.prompt_slice
        return Inputs(
            tokens=send(tokens, device)[None],
            positions=send(positions, device)[None],
            wanted=send([row_of[node] for node in self.wanted] + prompt_rows, device),
            step=AttentionStep(cache, send(slots, device), parts),
        )


def _part(tree: TokenTree, share: _Share, first: int, positions: np.ndarray, device: torch.device) -> AttentionSegment:
    keys = tree.top if share.nodes else tree.prompt_fed + share.prompt_slice
    visible = np.zeros((len(positions), keys), bool)
    for i in range(share.prompt_slice):
        visible[i, : tree.prompt_fed + i + 1] = True
    visible[share.prompt_slice :, : len(tree.prompt)] = True
    rows: dict[Node | None, int] = {}
    for i, node in enumerate(share.nodes, start=share.prompt_slice):
        if node.parent in rows:  # it sees what its parent sees, and itself
            visible[i] = visible[rows[node.parent]]
            visible[i, node.slot] = True
        else:
            visible[i, tree.path(node)] = True
        rows[node] = i
    return AttentionSegment(
        first=first,
        count=len(positions),
        start=tree.start,
        keys=keys,
        visible=visible,
        positions=positions,
        depths=tree.depths()[:keys],
        device=device,
    )
