"""Soak rounds: many mixed requests at once, clients that leave, workers that die; and what is held in between."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import psutil

from tests.fakes import answer
from tests.worker.test_engine_on_workers import ASK, FOREIGN, pool_of
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import Event
from w2s_core.errors import UnavailableError
from w2s_core.types import ChatPrompt, GenerationRequest, Guidance, Hypothesis, SamplingParams, TextPrompt

AT_ONCE = 32
PATIENCE = 60  # events of all clients together within which one that leaves has left
Answered = tuple[GenerationRequest, list[Hypothesis]]
BOTH = {"same": 1.0, "foreign": -0.5}
KINDS = [
    replace(ASK, model="plain"),
    replace(ASK, model="plain", n=3),
    ASK,
    replace(ASK, guidance=FOREIGN),
    replace(ASK, guidance=Guidance("cbs", BOTH, 2, 4, 7), n=2),
    replace(ASK, guidance=Guidance("cbs", {"same": 1.0}, 1, 4, 1)),
    replace(ASK, guidance=Guidance("cbs", {"same": 1.0}, 4, 4, 30)),
    replace(ASK, guidance=Guidance("best_of_n", BOTH, successors=5), n=2),
    replace(ASK, model="plain", best_of=4),
]


def requests(count: int, chance: random.Random) -> list[GenerationRequest]:
    """Every kind as often as the others, in any order, with every sort of sampling."""

    def one(kind: GenerationRequest) -> GenerationRequest:
        sampling = SamplingParams(
            max_tokens=chance.randrange(1, 40),
            temperature=chance.choice([0.0, 0.7, 1.0]),
            top_k=chance.choice([0, 20]),
            top_p=chance.choice([0.9, 1.0]),
            stop=chance.choice([(), ("e",), ("ab", "q")]),
            seed=chance.randrange(1000),
        )
        text = "".join(chance.choices("abcd xyz", k=chance.randrange(90)))
        # A chat goes by each model's own template, so only where the pair needs no prompt template of its own.
        chat = kind.guidance is None and chance.random() < 0.5
        prompt = ChatPrompt(({"role": "user", "content": text},)) if chat else TextPrompt(text)
        return replace(kind, prompts=(prompt,), sampling=sampling)

    kinds = (KINDS * (count // len(KINDS) + 1))[:count]
    return [one(kind) for kind in chance.sample(kinds, count)]


@dataclass
class Round:
    """`answered`: those who stayed, with their answers; `left`: how many were cancelled before theirs was whole."""

    answered: list[Answered] = field(default_factory=list)
    left: int = 0
    killed: int = 0


class Soak:
    """One round on one engine."""

    def __init__(self, engine: Engine, seed: int, count: int, kills: int) -> None:
        self._engine = engine
        self._chance = random.Random(seed)
        self._jobs = requests(count, self._chance)
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._deaths = sorted(self._chance.sample(range(count // 10, count // 2), kills))  # by answers that are whole
        self._events = 0
        self._leaving: list[tuple[int, asyncio.Task[list[Hypothesis]]]] = []
        self._round = Round()

    async def run(self) -> Round:
        """32 clients at once; every third leaves at a moment that chance decides."""
        async with asyncio.TaskGroup() as clients:
            for i, request in enumerate(self._jobs):
                clients.create_task(self._leaver(request) if i % 3 == 0 else self._stayer(request))
        assert not self._deaths, "no worker was killed: the round proves nothing"
        return self._round

    async def _stayer(self, request: GenerationRequest) -> None:
        async with self._at_once:
            self._round.answered.append((request, await self._ask(request)))
        pool = pool_of(self._engine)
        while self._deaths and len(self._round.answered) >= self._deaths[0]:
            victim = await pool.pick_worker(())
            if victim.alive:  # else it has only just died
                self._deaths.pop(0)
                self._round.killed += 1
                os.kill(victim.pid, signal.SIGKILL)

    async def _leaver(self, request: GenerationRequest) -> None:
        async with self._at_once:
            task = asyncio.create_task(self._ask(request))
            self._leaving.append((self._events + self._chance.randrange(PATIENCE), task))
            await asyncio.wait({task})
        self._round.left += task.cancelled()
        if not task.cancelled():
            task.result()

    async def _ask(self, request: GenerationRequest) -> list[Hypothesis]:
        while True:
            try:
                return await answer(self, request)  # type: ignore[arg-type]
            except UnavailableError:  # no worker is alive at the moment: try again, as a client does
                await pool_of(self._engine).pick_worker(())

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """The engine's events. Each one brings the next client's leaving closer."""
        async with aclosing(self._engine.generate(request)) as events:
            async for event in events:
                self._events += 1
                for moment, task in self._leaving:
                    if moment <= self._events:
                        task.cancel()
                self._leaving = [(moment, task) for moment, task in self._leaving if moment > self._events]
                yield event


@dataclass(frozen=True, slots=True)
class Holdings:
    """What this process and its workers hold, memory in MiB (resident)."""

    tasks: int
    threads: int
    files: int
    children: int
    server: float
    workers: float

    @classmethod
    def now(cls) -> Holdings:
        gc.collect()
        server = psutil.Process(os.getpid())
        children = server.children(recursive=True)
        return cls(
            tasks=len(asyncio.all_tasks()),
            threads=server.num_threads(),
            files=server.num_fds(),
            children=len(children),
            server=round(server.memory_info().rss / 2**20, 1),
            workers=round(sum(child.memory_info().rss for child in children) / 2**20, 1),
        )

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return self.tasks, self.threads, self.files, self.children


def fill_word_caches(engine: Engine) -> None:
    """Tokenizers remember the first 10,000 words that they see: now, so that this does not look like a leak."""
    planner, chance = engine._planner, random.Random(0)
    pairs = [model for scorer in planner.scorers.values() for model in scorer._models]  # type: ignore[attr-defined]
    for tokenizer in {model.tokenizer for model in [*planner.large_models.values(), *pairs]}:  # type: ignore[attr-defined]
        words = ("".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=12)) for _ in range(12_000))
        tokenizer.encode(" ".join(words), special_tokens=False)


async def replace_worker(engine: Engine) -> None:
    """Kills the first worker and waits until another is in its place."""
    pool = pool_of(engine)
    before = pool.workers[0]
    os.kill(before.pid, signal.SIGKILL)
    async with pool._workers_changed:
        await pool._workers_changed.wait_for(lambda: pool.workers[0] is not before)
