"""Keys and values of one model for all its sessions, in one pool per layer.

A session owns a contiguous *region* of slots (one slot = one token's K and V in every layer):

    region: | prompt tokens, in order | tokens of the answers' tree, in any order | room |

so its attention is one product over a view of the pool, and a new token is one row written anywhere in the region.
Which slots a token may see is a matter of the mask (`token_tree.py`), never of copying.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

_COPIED_AT_ONCE = 1024  # slots: bounds the memory that moving takes


class CacheFullError(Exception):
    """There is no room for these tokens."""


class Region:
    """A session's slots: [start, start + size). Only the cache moves or resizes it."""

    __slots__ = ("size", "start")

    def __init__(self, start: int, size: int) -> None:
        self.start = start
        self.size = size


class KVCache:
    """`slots` tokens of KV. Layers come into being when first written, in the shapes that the model gives them."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._regions: list[Region] = []  # sorted by start

    @property
    def slots_used(self) -> int:
        return sum(region.size for region in self._regions)

    def bytes_per_token(self) -> int:
        """Bytes of K and V of one token over all layers that exist."""
        return sum(k[0].nbytes + v[0].nbytes for k, v in self._layers.values())

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's pools (slots, kv_heads, dim), shaped after these (tokens, kv_heads, dim) at the first call."""
        if index not in self._layers:
            self._layers[index] = (
                key.new_empty((self.slots, *key.shape[1:])),
                value.new_empty((self.slots, *value.shape[1:])),
            )
        return self._layers[index]

    @torch.inference_mode()  # as the forwards that write the pool
    def allocate(self, size: int) -> Region:
        """A region of `size` slots. Raises CacheFullError."""
        start = self._find(size)
        if start is None:
            self._compact()
            start = self._find(size)
        if start is None:
            raise CacheFullError(f"No room for {size} tokens: {self.slots_used} of {self.slots} are in use.")
        region = Region(start, size)
        self._insert(region)
        return region

    @torch.inference_mode()
    def grow(self, region: Region, size: int) -> None:
        """Makes `region` at least `size` slots, in place or elsewhere; its content stays. Raises CacheFullError,
        or torch.OutOfMemoryError where moving takes more than there is; then nothing has changed."""
        index = self._regions.index(region)
        end = self._regions[index + 1].start if index + 1 < len(self._regions) else self.slots
        room = self.slots - self.slots_used + region.size
        if size > room:
            raise CacheFullError(f"No room for {size} tokens: {self.slots_used} of {self.slots} are in use.")
        wanted = min(max(size, region.size * 2), room)
        if end - region.start >= size:
            region.size = min(wanted, end - region.start)
            return
        if (start := self._find(wanted)) is not None:  # elsewhere, straight away
            self._copy(region.start, start, region.size)
            self._regions.remove(region)
            region.start, region.size = start, wanted
            self._insert(region)
            return
        content = [pool[region.start : region.start + region.size].clone() for pool in self._pools()]
        self._regions.remove(region)
        new = self.allocate(wanted)  # cannot fail: at worst everybody else moves together
        for pool, kept in zip(self._pools(), content, strict=True):
            pool[new.start : new.start + len(kept)] = kept
        self._regions[self._regions.index(new)] = region
        region.start, region.size = new.start, new.size

    def shrink(self, region: Region, size: int) -> None:
        """Gives back all but the first `size` slots."""
        region.size = min(region.size, size)

    @torch.inference_mode()
    def copy(self, source: Region, target: Region, size: int) -> None:
        """The first `size` tokens of `source` also become those of `target`."""
        self._copy(source.start, target.start, size)

    def free(self, region: Region) -> None:
        self._regions.remove(region)

    def check_integrity(self) -> None:
        """Regions lie inside the pool and never overlap."""
        end = 0
        for region in self._regions:
            assert region.start >= end, "regions overlap"
            assert region.size > 0, "an empty region"
            end = region.start + region.size
        assert end <= self.slots, "a region reaches past the pool"

    def _insert(self, region: Region) -> None:
        self._regions.append(region)
        self._regions.sort(key=lambda r: r.start)

    def _find(self, size: int) -> int | None:
        end = 0
        for region in self._regions:
            if region.start - end >= size:
                return end
            end = region.start + region.size
        return end if self.slots - end >= size else None

    def _compact(self) -> None:
        """Moves every region as far down as it goes, so that the room is in one piece."""
        end = 0
        for region in self._regions:
            if region.start > end:
                self._copy(region.start, end, region.size)
                region.start = end
            end += region.size

    def _copy(self, source: int, target: int, size: int) -> None:
        """In order, so that a move downwards may overlap."""
        for pool in self._pools():
            for first in range(0, size, _COPIED_AT_ONCE):
                last = min(first + _COPIED_AT_ONCE, size)
                pool[target + first : target + last] = pool[source + first : source + last].clone()

    def _pools(self) -> Iterator[torch.Tensor]:
        for key, value in self._layers.values():
            yield key
            yield value
