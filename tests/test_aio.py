"""`bounded`: order, limit and failure."""

from __future__ import annotations

import asyncio

import pytest

from w2s_core.aio import bounded


async def test_bounded_keeps_order_and_limit() -> None:
    at_work = most = 0

    async def work(item: int) -> int:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.001 * (5 - item))
        at_work -= 1
        return item * item

    assert await bounded(work, range(5), 2) == [0, 1, 4, 9, 16]
    assert most == 2


async def test_a_failure_cancels_the_others() -> None:
    cancelled: list[int] = []

    async def work(item: int) -> None:
        if item == 0:
            raise ValueError("the first")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    with pytest.raises(ValueError, match="the first"):
        await bounded(work, [1, 2, 0], 3)
    assert sorted(cancelled) == [1, 2]
