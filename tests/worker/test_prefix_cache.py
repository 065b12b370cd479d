"""The prefix cache compares prompts by slices: token by token, a new session among 64 long ones took 32 ms."""

from __future__ import annotations

from collections.abc import Iterator

from w2s_core.worker.kv_cache import KVCache
from w2s_core.worker.prefix_cache import PrefixCache
from w2s_core.worker.token_tree import TokenTree


class Unread(tuple[int, ...]):
    """Tokens that nobody may go through one by one."""

    __slots__ = ()

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("a loop over the prompt's tokens")


def test_prompts_are_not_compared_token_by_token() -> None:
    cache = KVCache(10_000)
    tree = TokenTree(cache, tuple(range(4000)))
    tree.reserve(0)
    tree.prompt_computed = 3999
    new = TokenTree(cache, Unread([*range(3000), 9, 9]))
    PrefixCache(cache).match_prefix(new, [tree])
    assert new.prompt_computed == new.cached_tokens == 3000
