"""One session's tokens as a tree: the prompt is the trunk, answers branch, equal beginnings are one node.

      prompt ── a ── b ── c          rows that drew the same tokens share nodes, hence KV and logits;
                 │    └── d          a survivor's past is stored once, whoever descends from it;
                 └── e               what is on no living answer's path is dropped, its slots are used again.

A node is *fed* when the model has run over its token: its KV lies in its slot. The last token of an answer stays unfed
until somebody wants to know what comes behind it, so a pruned answer's last token is never run at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from w2s_core.types import Tokens
from w2s_core.worker.kv_cache import CacheFullError, KVCache, Region

if TYPE_CHECKING:
    from w2s_core.worker.grammar_states import GrammarState

_UNFED = -1
_HEADROOM = 64  # slots behind the prompt that a new session gets at once
Slots = npt.NDArray[np.int64]


class Node:
    """A token of an answer (the root: the prompt's last token). `logprob` is log p(answer up to here | prompt)."""

    __slots__ = ("children", "depth", "grammar_state", "logprob", "parent", "path", "slot", "token")

    def __init__(self, token: int, parent: Node | None, depth: int) -> None:
        self.token = token
        self.parent = parent
        self.depth = depth  # position in the model's context
        self.children: dict[int, Node] = {}
        self.slot = _UNFED
        self.path: Slots | None = None  # slots from the answer's first token to this one; a cache
        self.logprob: float | None = None
        self.grammar_state: GrammarState | None = None  # of the answer up to here; its continuations resume from it

    @property
    def fed(self) -> bool:
        return self.slot != _UNFED

    def child(self, token: int) -> Node:
        """The continuation by `token`, made if there is none."""
        node = self.children.get(token)
        if node is None:
            node = self.children[token] = Node(token, self, self.depth + 1)
        return node


class TokenTree:
    """Owns a region of the cache from the first `hold` until `evict` or `close`. Only the scheduler changes it.

    Without its region a tree is only tokens: whatever is wanted then is run anew.
    """

    def __init__(self, cache: KVCache, prompt: Tokens) -> None:
        assert prompt, "a session needs at least one token to start from"
        self.prompt = prompt
        self.root = Node(prompt[-1], None, len(prompt) - 1)
        self.root.logprob = 0.0
        self.root.path = np.empty(0, np.int64)
        self.region: Region | None = None
        self._cache = cache
        self._trunk = self.root  # nobody living branches off above it, so `keep` need not look there
        self._last: tuple[Tokens, Node] = ((), self.root)  # the answer descended last: the next one begins alike
        self._reset()

    def _reset(self) -> None:
        self.prompt_fed = 0  # the prompt's first tokens whose KV is there; its last one is the root's business
        self.top = len(self.prompt)  # slots [0, top) have been given out
        self._free: list[int] = []
        self._depths = np.empty(0, np.int64)  # position of the token in each slot

    @property
    def start(self) -> int:
        """Where the region begins in the pool."""
        assert self.region is not None, "a tree without a region is not in a batch"
        return self.region.start

    def hold(self, new: int) -> None:
        """Makes sure that `new` more nodes can be placed. Raises CacheFullError, having changed nothing."""
        wanted = self.top + new - len(self._free)
        if self.region is None:
            try:
                self.region = self._cache.allocate(wanted + _HEADROOM)
            except CacheFullError:
                self.region = self._cache.allocate(wanted)
        elif wanted > self.region.size:
            self._cache.grow(self.region, wanted)
        if len(self._depths) < self.region.size:
            known = self._depths
            self._depths = np.arange(self.region.size)
            self._depths[: len(known)] = known

    def inherit(self, region: Region, size: int) -> None:
        """Takes the KV of the prompt's first `size` tokens from another region. Raises CacheFullError."""
        self.hold(0)
        assert self.region is not None
        self.prompt_fed = min(size, len(self.prompt) - 1)
        self._cache.copy(region, self.region, self.prompt_fed)

    def evict(self) -> None:
        """Gives the region back; the tokens stay."""
        if self.region is not None:
            self._cache.free(self.region)
            self.region = None
        self._reset()
        stack = [self.root]
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            node.slot = _UNFED
            if node is not self.root:
                node.path = None

    def descend(self, answer: Tokens) -> Node:
        """The node of the answer's last token; nodes that are missing are made."""
        known, node = self._last
        shared = _common(known, answer)
        for _ in range(len(known) - shared):
            assert node.parent is not None
            node = node.parent
        for token in answer[shared:]:
            if token not in node.children and node.depth < self._trunk.depth:
                self._trunk = self.root  # a new branch above it
            node = node.child(token)
        self._last = (answer, node)
        return node

    def missing(self, node: Node) -> list[Node]:
        """What must run so that `node`'s logits are known: its unfed ancestors from the top, then the node itself."""
        chain = [node]
        while chain[-1].parent is not None and not chain[-1].parent.fed:
            chain.append(chain[-1].parent)
        return chain[::-1]

    def place(self, node: Node) -> int:
        """Gives the node a slot, for which `hold` has made room; returns it (local to the region)."""
        if node.fed:
            return node.slot
        if node.parent is None:
            node.slot = len(self.prompt) - 1
            return node.slot
        node.slot = heappop(self._free) if self._free else self.top
        self.top = max(self.top, node.slot + 1)
        self._depths[node.slot] = node.depth
        return node.slot

    def path(self, node: Node) -> Slots:
        """Slots of the answer's tokens up to `node`, all placed."""
        tail: list[int] = []
        at = node
        while at.path is None:
            tail.append(at.slot)
            assert at.parent is not None
            at = at.parent
        if tail:
            assert at.path is not None
            node.path = np.concatenate([at.path, np.array(tail[::-1], np.int64)])
            if at.parent is not None and at.parent.parent is not None:
                at.parent.path = None  # only the ends keep theirs: paths must not cost the square of the length
        assert node.path is not None
        return node.path

    def depths(self) -> Slots:
        """Positions of the tokens in slots [0, top)."""
        return self._depths[: self.top]

    def keep(self, leaves: Iterable[Node]) -> None:
        """Drops every node that is neither a leaf here nor an ancestor of one."""
        ends = set(leaves)
        living = self._below_trunk(ends)
        dropped: list[Node] = []
        for node in living:
            if not living.issuperset(node.children.values()):
                dropped += [child for child in node.children.values() if child not in living]
                node.children = {token: child for token, child in node.children.items() if child in living}
        self._release(dropped)
        if self._last[1] not in living:
            self._last = ((), self.root)
        while len(self._trunk.children) == 1 and self._trunk not in ends:
            (self._trunk,) = self._trunk.children.values()

    def _below_trunk(self, ends: set[Node]) -> set[Node]:
        """These nodes and their ancestors up to the trunk, or to the root if some do not descend from the trunk."""
        living = {self._trunk}
        for end in ends:
            node: Node | None = end
            while node is not None and node not in living:
                living.add(node)
                node = node.parent
            if node is None:
                self._trunk = self.root
                return self._below_trunk(ends)
        return living

    def _release(self, dropped: list[Node]) -> None:
        """The slots of these nodes and of all behind them are free."""
        while dropped:
            node = dropped.pop()
            dropped += node.children.values()
            if node.fed:
                self._free.append(node.slot)
        self._free.sort()  # a sorted list is a heap
        while self._free and self._free[-1] == self.top - 1:
            self.top = self._free.pop()

    def close(self) -> None:
        """The region is free again."""
        if self.region is not None:
            self._cache.free(self.region)
            self.region = None

    def check_integrity(self) -> None:
        """Every slot given out is either reachable from the root, once, or free."""
        seen: list[int] = []
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            assert node.parent is not None
            assert not node.fed or node.parent.fed, "a fed node behind an unfed one"
            if node.fed:
                seen.append(node.slot)
        given = sorted(seen + self._free)
        assert given == list(range(len(self.prompt), self.top)), "slots lost or used twice"
        assert self.region is None or self.top <= self.region.size, "a slot outside the region"
        assert self.region is not None or not (seen or self.prompt_fed or self.root.fed), "fed without a region"


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning, by bisection: comparing slices is fast, a loop over long answers is not."""
    same, end = 0, min(len(one), len(other))
    while same < end:
        middle = (same + end + 1) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            end = middle - 1
    return same
