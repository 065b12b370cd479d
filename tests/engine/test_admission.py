"""The admission queue is fair and bounded, and never loses a row."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_engine import ASK, choices, events_of
from tests.fakes import DEFAULT_GUIDANCE, fake_engine
from w2s_core.config import Limits, ServedModelConfig
from w2s_core.engine.admission import AdmissionQueue, Ticket
from w2s_core.errors import OverloadedError, RequestError, ShuttingDownError
from w2s_core.types import Guidance, SamplingParams, TextPrompt


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


@settings(max_examples=300, deadline=None)
@given(
    limits=st.builds(
        Limits, max_rows=st.integers(1, 12), max_queued_rows=st.integers(0, 12), max_rows_per_request=st.just(9)
    ),
    w=st.integers(1, 4),
    k=st.integers(1, 4),
    method=st.sampled_from(["cbs", "best_of_n", "none"]),
    prompts=st.integers(1, 12),
)
def test_an_idle_engine_serves_a_request_or_says_what_never_fits(
    limits: Limits, w: int, k: int, method: Any, prompts: int
) -> None:
    guidance, sampling = Guidance(method, {"positive": 1.0}, w, k), SamplingParams(max_tokens=1, seed=1)
    request = replace(ASK, prompts=(TextPrompt("x"),) * prompts, guidance=guidance, sampling=sampling)
    rows = {"cbs": w * k, "best_of_n": k, "none": 1}[method]
    most = max(1, limits.max_rows // rows) + limits.max_queued_rows // rows
    engine = fake_engine(limits=limits)
    if rows > limits.max_rows_per_request:
        with pytest.raises(RequestError, match=f"{rows} sequences at once; at most 9"):
            asyncio.run(events_of(engine, request))
    elif prompts > most:
        with pytest.raises(RequestError, match=f"{prompts} prompts.* at most {most}") as refused:
            asyncio.run(events_of(engine, request))
        assert refused.value.param == "prompt"
    else:
        assert len(choices(asyncio.run(events_of(engine, request)))) == prompts
    assert (engine.admission.rows_running, engine.admission.rows_waiting) == (0, 0)


async def test_a_shorter_queue_after_a_reload_holds_for_new_requests() -> None:
    engine = fake_engine(limits=Limits(max_rows=4, max_queued_rows=8))
    request = replace(ASK, prompts=(TextPrompt("x"),) * 3)
    assert len(choices(await events_of(engine, request))) == 3
    engine.reconfigure({"guided": ServedModelConfig("large", DEFAULT_GUIDANCE)}, Limits(max_rows=4, max_queued_rows=7))
    with pytest.raises(RequestError, match="at most 2"):
        await events_of(engine, request)


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
