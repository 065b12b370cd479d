"""KV cache: one model's keys and values for all sessions, in one pool of slots per layer.

A session owns a contiguous *region* of slots (one slot = one token's K and V in every layer):

    region: | prompt tokens, in order | tokens of the answers' tree, in any order | unused |

so its attention is one product over a view of the pool, and a new token is one row written anywhere in the region.
The tree mask (built in `batch.py`) decides which slots a token sees; nothing is copied for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

_COPY_CHUNK = 1024  # slots copied at once: bounds the temporary memory of a move


class CacheFullError(Exception):
    """The cache has too few free slots for these tokens."""


class Region:
    """A session's slots: [start, start + size). Only the cache moves or resizes it."""

    __slots__ = ("size", "start")

    def __init__(self, start: int, size: int) -> None:
        self.start = start
        self.size = size


class KVCache:
    """Slots for `slots` tokens, allocated in contiguous regions. A layer's pool is created when it is first written."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._regions: list[Region] = []  # sorted by start

    @property
    def slots_used(self) -> int:
        """Slots in regions, whether or not they hold a token yet."""
        return sum(region.size for region in self._regions)

    def bytes_per_token(self) -> int:
        """Bytes of one token's K and V over all layers created so far."""
        return sum(k[0].nbytes + v[0].nbytes for k, v in self._layers.values())

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's K and V pools (slots, kv_heads, dim); the first call takes shape and type from (tokens, kv_heads,
        dim)."""
        if index not in self._layers:
            self._layers[index] = (
                key.new_empty((self.slots, *key.shape[1:])),
                value.new_empty((self.slots, *value.shape[1:])),
            )
        return self._layers[index]

    @torch.inference_mode()  # like the forwards that write the pool
    def allocate(self, size: int) -> Region:
        """A new region of `size` slots; compacts the pool if no gap is large enough. Raises CacheFullError."""
        start = self._find_gap(size)
        if start is None:
            self._compact()
            start = self._find_gap(size)
        if start is None:
            raise CacheFullError(f"No room for {size} tokens: {self.slots_used} of {self.slots} are in use.")
        region = Region(start, size)
        self._insert(region)
        return region

    @torch.inference_mode()
    def grow(self, region: Region, size: int) -> None:
        """Makes `region` at least `size` slots, in place or by moving it with its content. Doubles it where possible.

        Raises CacheFullError, or torch.OutOfMemoryError if the device lacks memory for the move; then nothing has
        changed.
        """
        index = self._regions.index(region)
        end = self._regions[index + 1].start if index + 1 < len(self._regions) else self.slots
        available = self.slots - self.slots_used + region.size
        if size > available:
            raise CacheFullError(f"No room for {size} tokens: {self.slots_used} of {self.slots} are in use.")
        target = min(max(size, region.size * 2), available)
        if end - region.start >= size:
            region.size = min(target, end - region.start)
            return
        if (start := self._find_gap(target)) is not None:  # move once, without compacting
            self._copy(region.start, start, region.size)
            self._regions.remove(region)
            region.start, region.size = start, target
            self._insert(region)
            return
        content = [pool[region.start : region.start + region.size].clone() for pool in self._pools()]
        self._regions.remove(region)
        new = self.allocate(target)  # cannot fail: compacting makes one gap of all free slots
        for pool, saved in zip(self._pools(), content, strict=True):
            pool[new.start : new.start + len(saved)] = saved
        self._regions[self._regions.index(new)] = region
        region.start, region.size = new.start, new.size

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

    def _compact(self) -> None:
        """Moves every region down, so that all free slots are in one gap at the end."""
        end = 0
        for region in self._regions:
            if region.start > end:
                self._copy(region.start, end, region.size)
                region.start = end
            end += region.size

    def _copy(self, source: int, target: int, size: int) -> None:
        """Copies slots in ascending order, so that a region moved down may overlap its old slots."""
        for pool in self._pools():
            for first in range(0, size, _COPY_CHUNK):
                last = min(first + _COPY_CHUNK, size)
                pool[target + first : target + last] = pool[source + first : source + last].clone()

    def _pools(self) -> Iterator[torch.Tensor]:
        for key, value in self._layers.values():
            yield key
            yield value
