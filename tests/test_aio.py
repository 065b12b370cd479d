"""The asyncio helpers: order, and how much runs at once."""

from __future__ import annotations

import asyncio

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
