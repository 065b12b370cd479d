"""A remote pair's calls: made early and once, and ended with the session."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.remote.test_pairs import PROMPT, answers, expected, pair_of, scorer_on
from w2s_core.text.tokenizer import HFTokenizer


async def test_what_is_expected_is_asked_for_meanwhile_and_once(tokenizer: HFTokenizer) -> None:
    models = pair_of(tokenizer)
    scorer = await scorer_on(models)
    go = asyncio.Event()
    for model in models:
        model.gate = go.wait
    first, more = answers("a"), answers("b", "c")
    async with scorer.open(PROMPT) as scoring, asyncio.timeout(60):
        await scoring.prefetch(first)  # returns although nobody answers
        await asyncio.sleep(0)
        assert [model.open_calls for model in models] == [2, 2]
        scores = asyncio.create_task(scoring.score([*first, *more]))
        go.set()
        found = await scores
        assert [len(model.calls) for model in models] == [6, 6]
    whole = [expected(models, tokenizer.encode("Say", special_tokens=True), y) for y in [*first, *more]]
    assert [score.total for score in found] == pytest.approx(whole)


async def test_who_leaves_ends_what_is_expected(tokenizer: HFTokenizer) -> None:
    models = pair_of(tokenizer)
    scorer = await scorer_on(models)
    for model in models:
        model.gate = asyncio.Event().wait
    before = asyncio.all_tasks()
    async with scorer.open(PROMPT) as scoring, asyncio.timeout(60):
        await scoring.prefetch(answers("a"))
        await asyncio.sleep(0)
        assert [model.open_calls for model in models] == [2, 2]
    assert [model.open_calls for model in models] == [0, 0]
    assert asyncio.all_tasks() == before


def slow_to_leave() -> tuple[Callable[[], Awaitable[None]], asyncio.Event]:
    """A gate that never opens, and an event without which its callers do not leave either."""
    may_leave = asyncio.Event()

    async def gate() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await may_leave.wait()

    return gate, may_leave


async def test_calls_that_were_dropped_are_over_when_the_session_is(tokenizer: HFTokenizer) -> None:
    models = pair_of(tokenizer)
    scorer = await scorer_on(models)
    before = asyncio.all_tasks()
    async with asyncio.timeout(60), scorer.open(PROMPT) as scoring:
        models[0].gate, may_leave = slow_to_leave()
        await scoring.prefetch(answers("a"))
        await asyncio.sleep(0)
        models[0].gate = None
        await scoring.score(answers("b"))
        assert models[0].open_calls == 2, "closing a connection takes a while"
        asyncio.get_running_loop().call_later(0.01, may_leave.set)
    assert models[0].open_calls == 0
    assert asyncio.all_tasks() == before


async def test_a_client_that_is_cancelled_twice_leaves_no_call_behind(tokenizer: HFTokenizer) -> None:
    models = pair_of(tokenizer)
    scorer = await scorer_on(models)
    models[0].gate, may_leave = slow_to_leave()
    models[1].gate = asyncio.Event().wait

    async def ask() -> None:
        async with scorer.open(PROMPT) as scoring:
            await scoring.prefetch(answers("a"))
            await asyncio.Event().wait()

    async with asyncio.timeout(60):
        asking = asyncio.create_task(ask())
        while [model.open_calls for model in models] != [2, 2]:
            await asyncio.sleep(0)
        for _ in range(2):
            asking.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await asking
        may_leave.set()
        while models[0].open_calls:
            await asyncio.sleep(0)
    assert models[1].open_calls == 0
