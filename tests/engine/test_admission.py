"""The admission queue is fair and bounded, and never loses a row."""

from __future__ import annotations

import asyncio
import random

import pytest

from w2s_core.engine.admission import AdmissionQueue, Ticket
from w2s_core.errors import OverloadedError, ShuttingDownError


async def test_tickets_are_served_in_order_and_rows_are_bounded() -> None:
    admission = AdmissionQueue(max_rows=10, max_queued_rows=100)
    tickets = [admission.reserve(rows) for rows in (6, 6, 3, 4)]
    assert [t.admitted.is_set() for t in tickets] == [True, False, False, False]  # 3 would fit but came later
    tickets[0].cancel()
    assert [t.admitted.is_set() for t in tickets[1:]] == [True, True, False]
    assert (admission.rows_running, admission.rows_waiting) == (9, 4)
    tickets[1].cancel()
    tickets[2].cancel()
    async with tickets[3]:
        assert admission.rows_running == 4
    assert (admission.rows_running, admission.rows_waiting) == (0, 0)


async def test_a_full_queue_refuses_at_once() -> None:
    admission = AdmissionQueue(max_rows=4, max_queued_rows=4)
    tickets = [admission.reserve(4), admission.reserve(4)]
    with pytest.raises(OverloadedError) as refused:
        admission.reserve(1)
    assert refused.value.retry_after_s > 0
    tickets[1].cancel()
    admission.reserve(1).cancel()


async def test_a_full_queue_also_refuses_rows_that_would_fit_now() -> None:
    admission = AdmissionQueue(max_rows=10, max_queued_rows=4)
    held = [admission.reserve(8), admission.reserve(4)]
    with pytest.raises(OverloadedError):
        admission.reserve(2)
    assert admission.rows_waiting == 4
    held[0].cancel()
    assert held[1].admitted.is_set()
    assert admission.reserve(6).admitted.is_set()


async def test_a_request_larger_than_the_machine_runs_alone() -> None:
    admission = AdmissionQueue(max_rows=4, max_queued_rows=100)
    small, large = admission.reserve(1), admission.reserve(9)
    assert not large.admitted.is_set()
    small.cancel()
    assert large.admitted.is_set()


async def test_leaving_the_queue_in_any_way_gives_the_rows_back() -> None:
    admission = AdmissionQueue(max_rows=8, max_queued_rows=1000)
    chance = random.Random(3)

    async def visit(rows: int) -> None:
        async with admission.reserve(rows):
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)

    tasks = [asyncio.create_task(visit(chance.randrange(1, 9))) for _ in range(100)]
    for task in chance.sample(tasks, 40):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (admission.rows_running, admission.rows_waiting) == (0, 0)


async def test_a_closed_queue_refuses_all_but_requests_that_have_begun() -> None:
    admission = AdmissionQueue(max_rows=4, max_queued_rows=100)
    begun, fresh = object(), object()
    running = admission.reserve(4, begun)
    waiting = {request: asyncio.create_task(visit(admission.reserve(2, request))) for request in (begun, fresh, None)}
    admission.close()
    for request in (fresh, None):
        with pytest.raises(ShuttingDownError):
            await waiting[request]
    assert admission.rows_waiting == 2
    with pytest.raises(ShuttingDownError):
        admission.reserve(1, begun)
    running.cancel()
    await waiting[begun]
    assert (admission.rows_running, admission.rows_waiting) == (0, 0)


async def visit(ticket: Ticket) -> None:
    async with ticket:
        pass
