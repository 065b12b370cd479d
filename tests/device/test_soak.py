"""Many requests of every kind at once, clients that leave, workers that die: every survivor gets its own answer."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
from contextlib import aclosing
from dataclasses import replace

import psutil
import pytest

from tests.device.test_engine_on_workers import ASK, FOREIGN, assert_nothing_is_held, pool_of
from tests.fakes import answer
from w2s_core.build import build_engine
from w2s_core.config import EngineConfig
from w2s_core.engine import Engine
from w2s_core.errors import UnavailableError
from w2s_core.types import GenerationRequest, Guidance, Hypothesis, SamplingParams, TextPrompt

Answered = tuple[GenerationRequest, list[Hypothesis]]
KINDS = [
    replace(ASK, model="plain"),
    replace(ASK, model="plain", n=3),
    ASK,
    replace(ASK, guidance=FOREIGN),
    replace(ASK, guidance=Guidance("cbs", {"same": 1.0, "foreign": -0.5}, 2, 4, 7), n=2),
    replace(ASK, best_of=4),
]


def requests(count: int, chance: random.Random) -> list[GenerationRequest]:
    def one() -> GenerationRequest:
        sampling = SamplingParams(
            max_tokens=chance.randrange(1, 40),
            temperature=chance.choice([0.0, 0.7, 1.0]),
            top_k=chance.choice([0, 20]),
            stop=chance.choice([(), ("e",), ("ab", "q")]),
            seed=chance.randrange(1000),
        )
        return replace(chance.choice(KINDS), prompts=(TextPrompt("x" * chance.randrange(90)),), sampling=sampling)

    return [one() for _ in range(count)]


async def leave_early(engine: Engine, request: GenerationRequest, events: int) -> None:
    async with aclosing(engine.generate(request)) as stream:
        async for _ in stream:
            events -= 1
            if events < 0:
                return


async def a_round(engine: Engine, seed: int, count: int, kills: int) -> list[Answered]:
    """`count` requests, 32 at once, a third of them left at some moment; returns the others with their answers."""
    chance = random.Random(seed)
    places = asyncio.Semaphore(32)
    done: list[Answered] = []
    deaths = sorted(chance.sample(range(count // 5, count), kills))

    async def client(request: GenerationRequest, *, leaves: bool) -> None:
        async with places:
            while True:
                try:
                    if leaves:
                        await leave_early(engine, request, chance.randrange(6))
                    else:
                        done.append((request, await answer(engine, request)))
                    break
                except UnavailableError:  # nobody alive at the moment: as a client does, try again
                    await pool_of(engine).acquire(())
            while deaths and len(done) >= deaths[0] / 2 and any(w.alive for w in pool_of(engine).workers):
                deaths.pop(0)
                victims = [worker for worker in pool_of(engine).workers if worker.alive]
                os.kill(chance.choice(victims).pid, signal.SIGKILL)

    jobs = requests(count, chance)
    async with asyncio.TaskGroup() as clients:
        for i, request in enumerate(jobs):
            clients.create_task(client(request, leaves=i % 3 == 0))
    assert not deaths, "nobody was killed: the round proves nothing"
    return done


async def test_every_survivor_gets_its_own_answer(config: EngineConfig) -> None:
    async with build_engine(config) as engine:
        done = await a_round(engine, seed=1, count=200, kills=2)
        assert len(done) == 133
        await assert_nothing_is_held(engine)
        for request, answers in random.Random(2).sample(done, 25):
            alone = await answer(engine, request)
            assert [y.text for y in alone] == [y.text for y in answers]


async def test_a_request_among_31_others_is_answered_as_alone(engine: Engine) -> None:
    jobs = requests(32, random.Random(7))
    together = await asyncio.gather(*(answer(engine, request) for request in jobs))
    for request, answers in zip(jobs[:8], together, strict=False):
        assert [y.text for y in await answer(engine, request)] == [y.text for y in answers]


test_a_request_among_31_others_is_answered_as_alone = pytest.mark.asyncio(loop_scope="session")(
    test_a_request_among_31_others_is_answered_as_alone
)


@pytest.mark.slow
async def test_memory_does_not_grow_over_rounds(config: EngineConfig) -> None:
    """Resident memory of server and worker after rounds 2, 3 and 4; without kills, which would start it afresh."""
    async with build_engine(config) as engine:
        sizes = []
        for seed in range(4):
            await a_round(engine, seed=seed, count=200, kills=0)
            await assert_nothing_is_held(engine)
            gc.collect()
            pids = [os.getpid(), *(worker.pid for worker in pool_of(engine).workers)]
            sizes.append(sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20)
        assert max(sizes[2:]) - sizes[1] < 30, f"MiB after each round: {sizes}"
