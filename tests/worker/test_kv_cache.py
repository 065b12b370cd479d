"""KV cache: regions move with their content, wherever they are, without asking the device for memory."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from w2s_core.worker.kv_cache import CacheFullError, KVCache, Region

SLOTS = 64
COPIES = {"aten.slice.Tensor", "aten.copy_.default", "aten.alias.default"}  # these write into memory that exists


class OnlyCopies(TorchDispatchMode):
    """Fails for every operation that could allocate memory, as a device without any does."""

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:  # type: ignore[type-arg]
        if str(func) not in COPIES:
            raise torch.OutOfMemoryError(f"{func} allocates")
        return func(*args, **(kwargs or {}))  # type: ignore[operator]


def new_cache(buffer_slots: int) -> KVCache:
    """Two layers, whose keys and values have several shapes and types."""
    cache = KVCache(SLOTS, buffer_slots)
    for layer, heads in enumerate((2, 1)):
        cache.layer(layer, torch.empty(1, heads, 4), torch.empty(1, heads, 3, dtype=torch.float16))
    for pool in cache._pools():
        pool.zero_()
    return cache


def write(cache: KVCache, region: Region, first: int, name: int) -> None:
    """Marks the region's slots from `first` on with a number of their own."""
    for pool in cache._pools():
        for slot in range(first, region.size):
            pool[region.start + slot] = name * SLOTS + slot


def assert_content(cache: KVCache, region: Region, name: int) -> None:
    expected = torch.arange(region.size) + name * SLOTS
    for pool in cache._pools():
        held = pool[region.start : region.start + region.size].flatten(1)
        assert (held == expected[:, None].to(pool.dtype)).all(), f"region {name} lost its content"


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_moves_keep_every_regions_content_and_need_no_memory(data: st.DataObject) -> None:
    """With a small buffer a move by less than a region's size takes several copies."""
    cache = new_cache(data.draw(st.integers(1, 9)))
    regions: dict[int, Region] = {}  # by name
    for name in range(data.draw(st.integers(1, 20))):
        action = data.draw(st.sampled_from(["allocate", "grow", "free", "shrink"] if regions else ["allocate"]))
        chosen = name if action == "allocate" else data.draw(st.sampled_from(sorted(regions)))
        before, size, free = regions.get(chosen), data.draw(st.integers(1, 24)), SLOTS - cache.slots_used
        kept = min(before.size, size) if before and action == "shrink" else before.size if before else 0
        try:
            with OnlyCopies():
                change(cache, regions, chosen, action, size)
        except CacheFullError:
            assert size > free + (before.size if before else 0), "there was room"
        if chosen in regions:
            write(cache, regions[chosen], kept, chosen)
        cache.check_integrity()
        for other, region in regions.items():
            assert_content(cache, region, other)


def change(cache: KVCache, regions: dict[int, Region], name: int, action: str, size: int) -> None:
    match action:
        case "allocate":
            regions[name] = cache.allocate(size)
        case "grow":
            cache.grow(regions[name], size)
        case "shrink":
            cache.shrink(regions[name], size)
        case _:
            cache.free(regions.pop(name))
