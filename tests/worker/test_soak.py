"""Many requests of every kind at once, clients that leave, workers that die: every survivor gets its own answer."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import aclosing
from dataclasses import replace

import pytest

from tests.fakes import answer
from tests.worker.soak import AT_ONCE, KINDS, Answered, Holdings, Soak, fill_word_caches, replace_worker, requests
from tests.worker.test_engine_on_workers import ASK, assert_nothing_is_held, pool_of
from tests.worker.test_untuned_null import SEARCH
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig, Limits
from w2s_core.engine.engine import Engine
from w2s_core.pool import backoff
from w2s_core.types import SamplingParams

CROWDED = Limits(max_rows=128, max_queued_rows=10_000)  # some of the 32 wait for rows
_WARM_UP = 2  # rounds
_GROWTH_MIB = 8  # what allocators keep or not from round to round; a request leaked whole would be more


async def assert_answered_as_alone(engine: Engine, answered: list[Answered]) -> None:
    for request, answers in answered:
        alone = await answer(engine, request)
        assert [y.text for y in alone] == [y.text for y in answers], request


async def test_every_survivor_gets_its_own_answer(config: EngineConfig) -> None:
    async with build_engine(replace(config, limits=CROWDED)) as engine:
        found = await Soak(engine, seed=1, count=90, kills=2).run()
        assert len(found.answered) == 60
        assert found.killed == 2
        assert found.left > 10, "hardly anybody left: the round proves little"
        await assert_nothing_is_held(engine)
        await assert_answered_as_alone(engine, random.Random(2).sample(found.answered, 20))


@pytest.mark.asyncio(loop_scope="session")
async def test_a_request_among_31_others_is_answered_as_alone(engine: Engine) -> None:
    jobs = requests(32, random.Random(7))
    together = await asyncio.gather(*(answer(engine, request) for request in jobs))
    await assert_answered_as_alone(engine, list(zip(jobs, together, strict=True)))


@pytest.mark.asyncio(loop_scope="session")
async def test_the_same_alone_among_31_others_and_after_its_workers_death(mortal: Engine) -> None:
    """One long request of each kind, the worker killed while the first of them is in the middle of its answer."""
    kinds = [*KINDS, replace(ASK, guidance=SEARCH)]  # the last one's pairs have no untuned models
    asked = [replace(kind, sampling=SamplingParams(max_tokens=100, seed=31 + i)) for i, kind in enumerate(kinds)]
    others = requests(AT_ONCE - len(asked), random.Random(3))
    alone = [await answer(mortal, request) for request in asked]
    texts = [[y.text for y in answers] for answers in alone]
    company = [asyncio.create_task(answer(mortal, request)) for request in asked + others]
    first = pool_of(mortal).workers[0]
    async with aclosing(mortal.generate(replace(ASK, model="plain", sampling=asked[0].sampling))) as events:
        async for _ in events:
            assert not all(task.done() for task in company[: len(asked)])
            os.kill(first.pid, signal.SIGKILL)
            break
    together = await asyncio.gather(*company)
    assert pool_of(mortal).workers[0] is not first
    assert [[y.text for y in answers] for answers in together[: len(asked)]] == texts
    await assert_nothing_is_held(mortal)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [0, 2])
async def test_nothing_grows_over_three_rounds(
    config: EngineConfig, kills: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three rounds of 200 requests, each survivor compared with its lone answer. Two rounds before, to be warm.

    Without kills the worker itself must not grow. With them it is another process after each round, so what is compared
    is a new worker after the same requests.
    """
    monkeypatch.setattr(backoff, "STEADY_S", 0.0)  # no waiting between deaths
    held: list[Holdings] = []
    # Little KV, so that the memory of prompts, which may take a quarter of it, is full after the first round.
    workers = replace(config.workers, kv_cache_gb=0.002)
    async with build_engine(replace(config, limits=CROWDED, workers=workers)) as engine:
        fill_word_caches(engine)
        for seed in range(_WARM_UP + 3):
            found = await Soak(engine, seed, count=200, kills=kills).run()
            await assert_nothing_is_held(engine)
            assert len(found.answered) == 133
            await assert_answered_as_alone(engine, found.answered)
            if kills:
                await replace_worker(engine)
                await Soak(engine, seed=99, count=60, kills=0).run()
            await assert_nothing_is_held(engine)
            held.append(Holdings.now())
            with capsys.disabled():
                print(f"\nround {seed}, {found.killed} kills, {found.left} of 67 left early: {held[-1]}")
    assert len({now.counts for now in held}) == 1, held
    before, after = held[_WARM_UP - 1], held[_WARM_UP:]
    assert max(now.server for now in after) - before.server < _GROWTH_MIB, held
    assert max(now.workers for now in after) - before.workers < _GROWTH_MIB, held


@pytest.mark.slow
async def test_in_float64_no_death_changes_an_answer(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, ten deaths. In float32 another batch rounds otherwise, which may change one draw in 70,000."""
    monkeypatch.setattr(backoff, "STEADY_S", 0.0)
    workers = replace(config.workers, devices=("cpu", "cpu"), dtype="float64")  # type: ignore[arg-type]
    async with build_engine(replace(config, limits=CROWDED, workers=workers)) as engine:
        found = await Soak(engine, seed=5, count=400, kills=10).run()
        assert found.killed == 10
        await assert_nothing_is_held(engine)
        await assert_answered_as_alone(engine, found.answered)
