"""Prefix cache: the KV of closed sessions' prompts, kept so that a prompt with the same prefix is not computed again.

A new session copies the KV of the longest prefix that its prompt shares with an open session's or a cached prompt.
A system prompt, or the same question asked again, is computed once.
"""

from __future__ import annotations

from collections.abc import Iterable

from w2s_core.types import Tokens
from w2s_core.worker.kv_cache import KVCache, Region
from w2s_core.worker.token_tree import TokenTree, common_length

_MIN_PREFIX = 16  # tokens; computing fewer is cheaper than copying them
_MAX_SHARE = 0.25  # of the KV cache


class PrefixCache:
    """Cached prompts of one model, evicted least recently used first, and before any session loses KV."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._prompts: dict[Tokens, Region] = {}  # least recently used first

    @property
    def slots_used(self) -> int:
        return sum(region.size for region in self._prompts.values())

    def match_prefix(self, new: TokenTree, trees: Iterable[TokenTree]) -> None:
        """Copies the longest matching prefix into a `new` tree, from the cache or from one of the open `trees`.

        Does nothing if the match is too short to be worth it. Raises CacheFullError.
        """
        sources = [(tree.prompt[: tree.prompt_computed], tree.region) for tree in trees if tree.region is not None]
        sources += self._prompts.items()
        size, tokens, region = max(
            ((common_length(new.prompt, tokens), tokens, region) for tokens, region in sources),
            key=lambda match: match[0],
            default=(0, (), None),
        )
        if region is None or size < _MIN_PREFIX:
            return
        if tokens in self._prompts:
            self._prompts[tokens] = self._prompts.pop(tokens)
        new.copy_prefix(region, size)

    def insert(self, tree: TokenTree) -> None:
        """Takes over the KV of a closing tree's prompt and closes the tree."""
        region, prompt = tree.region, tree.prompt[: tree.prompt_computed]
        limit = int(self._cache.slots * _MAX_SHARE)
        if region is None or not _MIN_PREFIX <= len(prompt) <= limit or prompt in self._prompts:
            tree.close()
            return
        tree.region = None
        self._cache.shrink(region, len(prompt))
        self._prompts[prompt] = region
        while self.slots_used > limit:
            self.evict_one()

    def evict_one(self) -> bool:
        """Frees the least recently used prompt's KV. Returns False when the cache is empty."""
        if not self._prompts:
            return False
        self._cache.free(self._prompts.pop(next(iter(self._prompts))))
        return True
