"""Prompts that are gone but may come again: their KV stays while there is room.

A new session copies the KV of the longest beginning that its prompt shares with a living or remembered one, so that a
system prompt, or the same question asked again, is run once.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

from w2s_core.types import Tokens
from w2s_core.worker.kv_cache import KVCache, Region
from w2s_core.worker.token_tree import TokenTree

_SHORTEST = 16  # tokens; running fewer is cheaper than looking for them
_SHARE = 0.25  # of the cache, at most


class PrefixCache:
    """Least recently used first; its regions are the first to go when a session needs room."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._prompts: dict[Tokens, Region] = {}  # in the order of their last use

    @property
    def slots(self) -> int:
        return sum(region.size for region in self._prompts.values())

    def serve(self, tree: TokenTree, living: Iterable[TokenTree]) -> None:
        """Gives a new tree what is known of its prompt's beginning, if that is worth it. Raises CacheFullError."""
        known = [(other.prompt[: other.prompt_fed], other.region) for other in living if other.region is not None]
        known += self._prompts.items()
        size, tokens, region = max(
            ((_common(tree.prompt, tokens), tokens, region) for tokens, region in known),
            key=lambda found: found[0],
            default=(0, (), None),
        )
        if region is None or size < _SHORTEST:
            return
        if tokens in self._prompts:
            self._prompts[tokens] = self._prompts.pop(tokens)
        tree.inherit(region, size)

    def remember(self, tree: TokenTree) -> None:
        """Takes over the prompt's part of a tree's region; the tree is closed."""
        region, fed = tree.region, tree.prompt[: tree.prompt_fed]
        limit = int(self._cache.slots * _SHARE)
        if region is None or not _SHORTEST <= len(fed) <= limit or fed in self._prompts:
            tree.close()
            return
        tree.region = None
        self._cache.shrink(region, len(fed))
        self._prompts[fed] = region
        while self.slots > limit:
            self.forget_one()

    def forget_one(self) -> bool:
        """Frees the prompt that was not used for the longest time; False when there is none."""
        if not self._prompts:
            return False
        self._cache.free(self._prompts.pop(next(iter(self._prompts))))
        return True


def _common(a: Tokens, b: Tokens) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
