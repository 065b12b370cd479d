"""KV cache: one model's keys and values for all sessions, in one pool of slots per layer.

A session owns a contiguous *region* of slots (one slot = one token's K and V in every layer):

    region: | prompt tokens, in order | tokens of the answers' tree, in any order | unused |

so its attention is one product over a view of the pool, and a new token is one row written anywhere in the region.
The tree mask (built in `batch.py`) decides which slots a token sees; nothing is copied for it. A pool has one slot more
than regions can have: padding tokens of a step are written there, and no token of a session sees it. Pools stay where
they are in memory for as long as the cache lives, which captured steps count on (see `cuda_graphs.py`).

Moving a region needs no memory but a buffer that is held from the start: a move that failed halfway would leave a
session on the wrong keys in some layers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

_BUFFER_SLOTS = 1024


class CacheFullError(Exception):
    """The cache has too few free slots for these tokens."""


class Region:
    """A session's slots: [start, start + size). Only the cache moves or resizes it."""

    __slots__ = ("size", "start")

    def __init__(self, start: int, size: int) -> None:
        self.start = start
        self.size = size


class KVCache:
    """Slots for `slots` tokens, allocated in contiguous regions. A layer's pool is created when it is first written.

    A region that overlaps its new place is moved `buffer_slots` at a time.
    """

    def __init__(self, slots: int, buffer_slots: int = _BUFFER_SLOTS) -> None:
        self.slots = slots
        self._buffer_slots = min(slots, buffer_slots)
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        # By shape, type and device of a pool's slot.
        self._buffers: dict[tuple[torch.Size, torch.dtype, torch.device], torch.Tensor] = {}
        self._regions: list[Region] = []  # sorted by start

    @property
    def padding_slot(self) -> int:
        """The slot that belongs to no session."""
        return self.slots

    @property
    def slots_used(self) -> int:
        """Slots in regions, whether or not they hold a token yet."""
        return sum(region.size for region in self._regions)

    def bytes_per_token(self) -> int:
        """Bytes of one token's K and V over all layers created so far."""
        return sum(self.bytes_per_token_by_device().values())

    def bytes_per_token_by_device(self) -> dict[torch.device, int]:
        """As `bytes_per_token`, of each device's layers."""
        sizes: dict[torch.device, int] = {}
        for k, v in self._layers.values():
            sizes[k.device] = sizes.get(k.device, 0) + k[0].nbytes + v[0].nbytes
        return sizes

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's K and V pools (slots + 1, kv_heads, dim); the first call takes shape and type from (tokens,
        kv_heads, dim)."""
        if index not in self._layers:
            self._layers[index] = (self._new_pool(key), self._new_pool(value))
        return self._layers[index]

    def _new_pool(self, like: torch.Tensor) -> torch.Tensor:
        slot = like.shape[1:]
        if (key := (slot, like.dtype, like.device)) not in self._buffers:
            self._buffers[key] = like.new_empty((self._buffer_slots, *slot))
        return like.new_empty((self.slots + 1, *slot))

    @torch.inference_mode()  # like the forwards that write the pool
    def allocate(self, size: int) -> Region:
        """A new region of `size` slots; compacts the pool if no gap is large enough. Raises CacheFullError."""
        if size > self.slots - self.slots_used:
            raise CacheFullError(f"No room for {size} tokens: {self.slots_used} of {self.slots} are in use.")
        start = self._find_gap(size)
        if start is None:
            start = self._compact(len(self._regions))
        region = Region(start, size)
        self._insert(region)
        return region

    @torch.inference_mode()
    def grow(self, region: Region, size: int) -> None:
        """Makes `region` at least `size` slots, in place or by moving it with its content. Doubles it where possible.

        Raises CacheFullError, having changed nothing.
        """
        index = self._regions.index(region)
        end = self._regions[index + 1].start if index + 1 < len(self._regions) else self.slots
        available = self.slots - self.slots_used + region.size
        if size > available:
            raise CacheFullError(f"No room for {size} tokens: {self.slots_used} of {self.slots} are in use.")
        target = min(max(size, region.size * 2), available)
        if end - region.start >= size:
            region.size = min(target, end - region.start)
        elif (start := self._find_gap(target)) is not None:  # move one region instead of all
            self._move(region, start)
            self._regions.remove(region)
            region.size = target
            self._insert(region)
        else:
            self._compact(index + 1)
            region.size = target

    def shrink(self, region: Region, size: int) -> None:
        """Frees all but the region's first `size` slots."""
        region.size = min(region.size, size)

    @torch.inference_mode()
    def copy(self, source: Region, target: Region, size: int) -> None:
        """Copies the KV of the first `size` slots of `source` to those of `target`."""
        self._copy(source.start, target.start, size)

    def free(self, region: Region) -> None:
        """Frees all slots of the region."""
        self._regions.remove(region)

    def check_integrity(self) -> None:
        """Asserts that regions lie inside the pool and do not overlap."""
        end = 0
        for region in self._regions:
            assert region.start >= end, "regions overlap"
            assert region.size > 0, "an empty region"
            end = region.start + region.size
        assert end <= self.slots, "a region reaches past the pool"

    def _insert(self, region: Region) -> None:
        self._regions.append(region)
        self._regions.sort(key=lambda r: r.start)

    def _find_gap(self, size: int) -> int | None:
        """First slot of the first gap of at least `size` slots."""
        end = 0
        for region in self._regions:
            if region.start - end >= size:
                return end
            end = region.start + region.size
        return end if self.slots - end >= size else None

    def _compact(self, count: int) -> int:
        """Moves the first `count` regions down and the others up, so that all free slots are in one gap between them.

        Returns the gap's first slot.
        """
        end = 0
        for region in self._regions[:count]:
            self._move(region, end)
            end += region.size
        start = self.slots
        for region in reversed(self._regions[count:]):
            start -= region.size
            self._move(region, start)
        return end

    def _move(self, region: Region, start: int) -> None:
        self._copy(region.start, start, region.size)
        region.start = start

    def _copy(self, source: int, target: int, size: int) -> None:
        """Copies slots within every pool; source and target may overlap."""
        if source == target:
            return
        if abs(source - target) >= size:
            for pool in self._pools():
                pool[target : target + size] = pool[source : source + size]
            return
        starts = range(0, size, self._buffer_slots)
        for pool in self._pools():
            buffer = self._buffers[pool.shape[1:], pool.dtype, pool.device]
            for first in starts if target < source else reversed(starts):  # what is still to be read is not overwritten
                count = min(self._buffer_slots, size - first)
                buffer[:count] = pool[source + first : source + first + count]
                pool[target + first : target + first + count] = buffer[:count]

    def _pools(self) -> Iterator[torch.Tensor]:
        for key, value in self._layers.values():
            yield key
            yield value
