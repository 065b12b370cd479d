"""Token tree: one session's prompt and answers, with shared prefixes stored once in the KV cache.

      prompt ── a ── b ── c          rows that drew the same tokens share nodes, hence KV and logits;
                 │    └── d          a survivor's prefix is stored once, however many answers continue it;
                 └── e               nodes on no living answer's path are dropped and their slots are reused.

A node is *computed* when the model has run over its token, so that its KV is in its slot. An answer's last token stays
uncomputed until the logits after it are needed, so the last token of a pruned answer is never run.
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

_NO_SLOT = -1
_HEADROOM = 64  # slots after the prompt that a new session gets at once
Slots = npt.NDArray[np.int64]


class Node:
    """One token of an answer; the root is the prompt's last token.

    `logprob` is log p(answer up to this token | prompt) in nats and `reward` a reward model's reward of prompt and
    answer up to this token, None while unknown.
    """

    __slots__ = ("children", "grammar_state", "logprob", "parent", "path_slots", "position", "reward", "slot", "token")

    def __init__(self, token: int, parent: Node | None, position: int) -> None:
        self.token = token
        self.parent = parent
        self.position = position  # in the model's context
        self.children: dict[int, Node] = {}
        self.slot = _NO_SLOT  # in the session's region
        self.path_slots: Slots | None = None  # cached result of `TokenTree.path_slots`
        self.logprob: float | None = None
        self.reward: float | None = None
        self.grammar_state: GrammarState | None = None  # of the answer up to here; continuations resume from it

    @property
    def computed(self) -> bool:
        """Whether the token's KV is in the cache."""
        return self.slot != _NO_SLOT

    def child(self, token: int) -> Node:
        """The child for `token`, created if it does not exist."""
        node = self.children.get(token)
        if node is None:
            node = self.children[token] = Node(token, self, self.position + 1)
        return node


class TokenTree:
    """A session's tokens and its region of the KV cache. Only the scheduler changes it.

    The tree owns a region from the first `reserve` until `evict` or `close`. Without a region it keeps its tokens,
    and whatever is needed of their KV is computed again.
    """

    def __init__(self, cache: KVCache, prompt: Tokens) -> None:
        assert prompt, "a session needs at least one token to start from"
        self.prompt = prompt
        self.root = Node(prompt[-1], None, len(prompt) - 1)
        self.root.logprob = 0.0
        self.root.path_slots = np.empty(0, np.int64)
        self.region: Region | None = None
        self.cached_tokens = 0  # leading prompt tokens whose KV another session had computed
        self._cache = cache
        self._trunk = self.root  # every living answer passes through it, so `prune_to` need not look above it
        self._last_inserted: tuple[Tokens, Node] = ((), self.root)  # the next answer usually shares its prefix
        self._reset_slots()

    def _reset_slots(self) -> None:
        self.prompt_computed = 0  # leading prompt tokens whose KV is cached; the last one counts as the root's
        self.slot_end = len(self.prompt)  # slots [0, slot_end) are in use or in `_free_slots`
        self._free_slots: list[int] = []  # a heap
        self._slot_positions = np.empty(0, np.int64)  # position of the token in each slot

    @property
    def resident(self) -> bool:
        """Whether the tree owns a region of the KV cache: False before its first `reserve` and after `evict`."""
        return self.region is not None

    @property
    def start(self) -> int:
        """The region's first slot in the pool."""
        assert self.region is not None, "a tree without a region is not in a batch"
        return self.region.start

    def reserve(self, new: int) -> None:
        """Makes room for `new` more nodes, allocating or growing the region.

        Raises CacheFullError, having changed nothing.
        """
        size = self.slot_end + new - len(self._free_slots)
        if self.region is None:
            try:
                self.region = self._cache.allocate(size + _HEADROOM)
            except CacheFullError:
                self.region = self._cache.allocate(size)
        elif size > self.region.size:
            self._cache.grow(self.region, size)
        if len(self._slot_positions) < self.region.size:
            assigned = self._slot_positions
            self._slot_positions = np.arange(self.region.size)
            self._slot_positions[: len(assigned)] = assigned

    def copy_prefix(self, region: Region, size: int) -> None:
        """Copies the KV of the prompt's first `size` tokens from another region. Raises CacheFullError."""
        self.reserve(0)
        assert self.region is not None
        self.prompt_computed = min(size, len(self.prompt) - 1)
        self._cache.copy(region, self.region, self.prompt_computed)
        self.cached_tokens = self.prompt_computed

    def evict(self) -> None:
        """Frees the region; the tokens stay and are computed again when needed."""
        self.close()
        self._reset_slots()
        stack = [self.root]
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            node.slot = _NO_SLOT
            if node is not self.root:
                node.path_slots = None

    def insert(self, answer: Tokens) -> Node:
        """The node of the answer's last token; missing nodes are created."""
        last, node = self._last_inserted
        shared = common_length(last, answer)
        for _ in range(len(last) - shared):
            assert node.parent is not None
            node = node.parent
        for token in answer[shared:]:
            if token not in node.children and node.position < self._trunk.position:
                self._trunk = self.root  # a new branch above it
            node = node.child(token)
        self._last_inserted = (answer, node)
        return node

    def uncomputed_path(self, node: Node) -> list[Node]:
        """The nodes to run to get the logits after `node`: its uncomputed ancestors from the top, then the node."""
        path = [node]
        while path[-1].parent is not None and not path[-1].parent.computed:
            path.append(path[-1].parent)
        return path[::-1]

    def assign_slot(self, node: Node) -> int:
        """Gives the node a slot, for which `reserve` has made room. Returns the slot's index in the region."""
        if node.computed:
            return node.slot
        if node.parent is None:
            node.slot = len(self.prompt) - 1
            return node.slot
        node.slot = heappop(self._free_slots) if self._free_slots else self.slot_end
        self.slot_end = max(self.slot_end, node.slot + 1)
        self._slot_positions[node.slot] = node.position
        return node.slot

    def path_slots(self, node: Node) -> Slots:
        """Slots of the answer's tokens from the first to `node`, all of which have one."""
        tail: list[int] = []
        ancestor = node
        while ancestor.path_slots is None:
            tail.append(ancestor.slot)
            assert ancestor.parent is not None
            ancestor = ancestor.parent
        if tail:
            assert ancestor.path_slots is not None
            node.path_slots = np.concatenate([ancestor.path_slots, np.array(tail[::-1], np.int64)])
            if ancestor.parent is not None and ancestor.parent.parent is not None:
                # Only the ends keep theirs, or memory would grow with the square of the answer's length.
                ancestor.parent.path_slots = None
        assert node.path_slots is not None
        return node.path_slots

    def slot_positions(self) -> Slots:
        """Positions of the tokens in slots [0, slot_end)."""
        return self._slot_positions[: self.slot_end]

    def prune_to(self, leaves: Iterable[Node]) -> None:
        """Prunes the tree: drops every node that is neither one of `leaves` nor an ancestor of one."""
        ends = set(leaves)
        living = self._living_below_trunk(ends)
        dropped: list[Node] = []
        for node in living:
            if not living.issuperset(node.children.values()):
                dropped += [child for child in node.children.values() if child not in living]
                node.children = {token: child for token, child in node.children.items() if child in living}
        self._free_subtrees(dropped)
        if self._last_inserted[1] not in living:
            self._last_inserted = ((), self.root)
        while len(self._trunk.children) == 1 and self._trunk not in ends:
            (self._trunk,) = self._trunk.children.values()

    def _living_below_trunk(self, ends: set[Node]) -> set[Node]:
        """`ends` and their ancestors up to the trunk, or to the root if some do not descend from the trunk."""
        living = {self._trunk}
        for end in ends:
            node: Node | None = end
            while node is not None and node not in living:
                living.add(node)
                node = node.parent
            if node is None:
                self._trunk = self.root
                return self._living_below_trunk(ends)
        return living

    def _free_subtrees(self, roots: list[Node]) -> None:
        """Frees the slots of these nodes and of all their descendants."""
        stack = roots
        while stack:
            node = stack.pop()
            stack += node.children.values()
            if node.computed:
                self._free_slots.append(node.slot)
        self._free_slots.sort()  # a sorted list is a heap
        while self._free_slots and self._free_slots[-1] == self.slot_end - 1:
            self.slot_end = self._free_slots.pop()

    def close(self) -> None:
        """Frees the region, if there is one."""
        if self.region is not None:
            self._cache.free(self.region)
            self.region = None

    def check_integrity(self) -> None:
        """Asserts that every slot in use is reachable from the root exactly once, and that every other one is free."""
        used: list[int] = []
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            assert node.parent is not None
            assert not node.computed or node.parent.computed, "a computed node below an uncomputed one"
            if node.computed:
                used.append(node.slot)
        assigned = sorted(used + self._free_slots)
        assert assigned == list(range(len(self.prompt), self.slot_end)), "slots lost or used twice"
        assert self.region is None or self.slot_end <= self.region.size, "a slot outside the region"
        assert self.resident or not (used or self.prompt_computed or self.root.computed), "computed without a region"


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix, by bisection: comparing slices is fast, looping over long answers is not."""
    same, end = 0, min(len(one), len(other))
    while same < end:
        middle = (same + end + 1) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            end = middle - 1
    return same
