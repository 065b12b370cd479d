"""Batch: the tokens of one forward pass, collected from many sessions' trees within a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from w2s_core.worker.attention import AttentionSegment, AttentionStep
from w2s_core.worker.branch_attention import find_branches
from w2s_core.worker.kv_cache import KVCache
from w2s_core.worker.token_tree import Node, TokenTree
from w2s_core.worker.transfer import long_tensor


@dataclass(slots=True)
class _SessionTokens:
    """One session's tokens in the batch: the next `prompt_slice` tokens of its prompt, then nodes, ancestors first.

    Logits are returned for the slice's last `prompt_logits` tokens. `new_slots`: how many of the nodes have no slot
    yet.
    """

    prompt_slice: int = 0
    prompt_logits: int = 0
    nodes: dict[Node, None] = field(default_factory=dict)
    new_slots: int = 0


@dataclass(frozen=True, slots=True)
class Inputs:
    """The forward's tensors: `tokens` and `positions` (1, N), and `logits_indices` (M,), the tokens whose logits are
    returned. `steps`: one for each model that is in the forward."""

    tokens: torch.Tensor
    positions: torch.Tensor
    logits_indices: torch.Tensor
    steps: tuple[AttentionStep, ...]


class Batch:
    """Built by `request_logits` and `request_prompt_logits` up to about `budget` tokens; `prepare_inputs` is called
    once.

    After the forward `logits_rows[node]` is the row of a node's logits. The rows of prompts' logits follow, see
    `prompt_logits_rows`.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget  # tokens that still fit
        self.size = 0  # tokens so far
        self._sessions: dict[TokenTree, _SessionTokens] = {}
        self.logits_rows: dict[Node, int] = {}

    @property
    def trees(self) -> list[TokenTree]:
        return list(self._sessions)

    @property
    def has_prefill(self) -> bool:
        """Whether prompt tokens are in the batch."""
        return any(session.prompt_slice for session in self._sessions.values())

    def request_logits(self, tree: TokenTree, node: Node, *, decoding: bool = False) -> bool:
        """Adds the tokens that the logits after `node` need, as many as the budget allows.

        Returns False when the node itself has to wait for a later batch. With `decoding` the node itself does not
        count against the budget, only the tokens that must run before it. Raises CacheFullError, having changed
        nothing.
        """
        if node in self.logits_rows:
            return True
        session = self._sessions.get(tree)
        budget = max(0, self._budget)
        prompt_slice = session.prompt_slice if session else min(budget, len(tree.prompt) - 1 - tree.prompt_computed)
        nodes: list[Node] = []
        if tree.prompt_computed + prompt_slice == len(tree.prompt) - 1:
            path = [n for n in tree.uncomputed_path(node) if session is None or n not in session.nodes]
            nodes = path[: budget - (0 if session else prompt_slice) + decoding]
        if not nodes and (session or not prompt_slice):
            return False
        new_slots = sum(not n.computed and n is not tree.root for n in nodes)
        tree.reserve((session.new_slots if session else 0) + new_slots)
        if session is None:
            session = self._sessions[tree] = _SessionTokens(prompt_slice)
            self._spend(prompt_slice)
        session.nodes.update(dict.fromkeys(nodes))
        session.new_slots += new_slots
        self._spend(len(nodes), free=decoding and node in session.nodes)
        if node in session.nodes:
            self.logits_rows[node] = len(self.logits_rows)
        return node in session.nodes

    def request_prompt_logits(self, tree: TokenTree, processed: int) -> None:
        """Adds the prompt's next tokens, as many as the budget allows, and requests the logits after each one beyond
        the first `processed`.

        Nothing else may be requested of this tree. Raises CacheFullError, having changed nothing.
        """
        size = min(max(0, self._budget), len(tree.prompt) - 1 - tree.prompt_computed)
        if size:
            tree.reserve(0)
            logits = max(0, min(size, tree.prompt_computed + size - processed))
            self._sessions[tree] = _SessionTokens(size, prompt_logits=logits)
            self._spend(size)

    def prompt_logits_rows(self, tree: TokenTree) -> slice:
        """The rows of the logits after this tree's prompt tokens, in the prompt's order."""
        first = len(self.logits_rows)
        for other, session in self._sessions.items():
            if other is tree:
                return slice(first, first + session.prompt_logits)
            first += session.prompt_logits
        return slice(first, first)

    def _spend(self, tokens: int, *, free: bool = False) -> None:
        """Adds to the size. One of the tokens does not count against the budget if `free`."""
        self.size += tokens
        self._budget -= tokens - free

    def prepare_inputs(self, cache: KVCache, device: torch.device) -> Inputs:
        """Gives every token its slot, for which there is room, and builds the forward's tensors."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        segments: list[AttentionSegment] = []
        index_of: dict[Node, int] = {}
        prompt_indices: list[int] = []
        for tree, session in self._sessions.items():
            first, start, computed = len(tokens), tree.start, tree.prompt_computed
            tokens += tree.prompt[computed : computed + session.prompt_slice]
            positions += range(computed, computed + session.prompt_slice)
            slots += range(start + computed, start + computed + session.prompt_slice)
            prompt_indices += range(len(tokens) - session.prompt_logits, len(tokens))
            for node in session.nodes:
                index_of[node] = len(tokens)
                tokens.append(node.token)
                positions.append(node.position)
                slots.append(start + tree.assign_slot(node))
            if len(tokens) > first:
                segments.append(_segment(tree, session, first, np.array(positions[first:]), device))
            tree.prompt_computed += session.prompt_slice
        return Inputs(
            tokens=long_tensor(tokens, device)[None],
            positions=long_tensor(positions, device)[None],
            logits_indices=long_tensor([index_of[node] for node in self.logits_rows] + prompt_indices, device),
            steps=(AttentionStep(cache, long_tensor(slots, device), segments),),
        )


def join_inputs(inputs: Sequence[Inputs]) -> Inputs:
    """The tensors of one forward that is several: the tokens of the first, then those of the second, and so on."""
    firsts = accumulate((each.tokens.shape[1] for each in inputs), initial=0)
    return Inputs(
        tokens=torch.cat([each.tokens for each in inputs], 1),
        positions=torch.cat([each.positions for each in inputs], 1),
        logits_indices=torch.cat([each.logits_indices + first for each, first in zip(inputs, firsts, strict=False)]),
        steps=tuple(step for each in inputs for step in each.steps),
    )


def _segment(
    tree: TokenTree, session: _SessionTokens, first: int, positions: np.ndarray, device: torch.device
) -> AttentionSegment:
    """One session's tree mask: a prompt token sees the prompt up to itself, a node the prompt and its own path."""
    keys = tree.slot_end if session.nodes else tree.prompt_computed + session.prompt_slice
    visible = np.zeros((len(positions), keys), bool)
    for i in range(session.prompt_slice):
        visible[i, : tree.prompt_computed + i + 1] = True
    visible[session.prompt_slice :, : len(tree.prompt)] = True
    rows: dict[Node | None, int] = {}
    paths: list[npt.NDArray[np.int64]] = []
    for i, node in enumerate(session.nodes, start=session.prompt_slice):
        if node.parent in rows:  # it sees what its parent sees, and itself
            visible[i] = visible[rows[node.parent]]
            visible[i, node.slot] = True
        else:
            paths.append(tree.path_slots(node))
            visible[i, paths[-1]] = True
        rows[node] = i
    side_by_side = device.type == "cpu" and len(paths) == len(positions)
    return AttentionSegment(
        first=first,
        count=len(positions),
        start=tree.start,
        keys=keys,
        visible=visible,
        positions=positions,
        key_positions=tree.slot_positions()[:keys],
        branches=find_branches(len(tree.prompt), paths, keys) if side_by_side else None,
    )
