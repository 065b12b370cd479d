"""Fuzz of the scheduler: many clients in little KV, some leave, memory fails, logits break; each survivor gets its own.

    make test ARGS="-m slow tests/worker/test_scheduler_fuzz.py"    # 20,000 jobs, minutes

The models run in float64: a forward's rounding depends on its batch, and must not decide a draw here.
"""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch

from tests.adapters import random_adapter
from tests.tiny import EOS, VOCABULARY, tiny_model
from tests.worker.fuzz_clients import Client, Results, numbers
from tests.worker.test_grammar_masks import TEXT
from tests.worker.test_scheduler import CPU, state
from tests.worker.test_scheduler_pressure import BrokenRows
from w2s_core.pool.messages import JobFailed, JobOutcome
from w2s_core.structured.grammar_compiling import new_tokenizer
from w2s_core.worker import scheduler, step_outputs
from w2s_core.worker.batch import Batch
from w2s_core.worker.grammar_masks import GrammarEngine
from w2s_core.worker.kv_cache import CacheFullError
from w2s_core.worker.loading import make_runner
from w2s_core.worker.lora import SharedBase
from w2s_core.worker.models import WorkerModels

AT_ONCE = (2, 2, 3, 12)  # clients per model, changed from time to time
SLOTS = 170  # of KV: enough for each client alone, and for two or three together
SLOT_BYTES = 512  # in float64
FAULTS = 0.01  # share of calls that an injected fault fails
LEAVES = 0.04  # share of steps after which a client leaves
PATIENCE = 3000  # steps within which some job must end


def models(slots: int, adapters: int) -> WorkerModels:
    """A model whose logits behind the token BROKEN are NaN, and this many adapters of it."""
    model = tiny_model().double()
    base, changes = SharedBase(model), {f"a{seed}": random_adapter(model, seed) for seed in range(adapters)}
    names = {"m": None} | {name: base.add(adapter, "it") for name, adapter in changes.items()}
    made = {name: make_runner(base, CPU, slots * SLOT_BYTES, adapter=adapter) for name, adapter in names.items()}
    broken = BrokenRows(model, math.nan, everywhere=False)
    for runner, info in made.values():
        assert info.kv_slots == slots
        runner._model = broken
    return WorkerModels(made, {name: GrammarEngine(lambda: new_tokenizer(TEXT, [EOS], VOCABULARY)) for name in made})


def names_of(subject: WorkerModels) -> list[str]:
    return list(subject._schedulers)


class Faults:
    """Fails a share of the calls that may fail in use: forwards, draws, scores and allocations of KV."""

    def __init__(self, chance: random.Random, subject: WorkerModels, patch: pytest.MonkeyPatch) -> None:
        self.count: Counter[str] = Counter()
        self._chance = chance
        for runner in (each.runner for each in subject._schedulers.values()):
            # when slots are assigned, and nothing is in them
            self._may_fail(patch, runner, "_model", torch.OutOfMemoryError)
            self._may_fail(patch, runner.cache, "allocate", CacheFullError)
            self._may_fail(patch, runner.cache, "grow", CacheFullError)
        self._may_fail(patch, step_outputs, "draw_tokens", torch.OutOfMemoryError)
        self._may_fail(patch, scheduler, "score_answers", torch.OutOfMemoryError)

    def _may_fail(self, patch: pytest.MonkeyPatch, owner: object, name: str, error: type[Exception]) -> None:
        original = getattr(owner, name)

        def call(*args: object, **named: object) -> object:
            empty = bool(args) and isinstance(args[0], Batch) and not args[0].size  # then nothing runs that may fail
            if not empty and self._chance.random() < FAULTS:
                self.count[name] += 1
                raise error("injected")
            return original(*args, **named)

        patch.setattr(owner, name, call)


class Fuzz:
    """One run. `finished` are the clients that nothing hit, by seed; `hit` those that an injected fault failed."""

    def __init__(self, seed: int, patch: pytest.MonkeyPatch, adapters: int) -> None:
        self.finished: dict[int, Client] = {}
        self.hit = self.left = self.jobs = 0
        self._chance = random.Random(seed)
        self._subject = models(SLOTS, adapters)
        self.faults = Faults(self._chance, self._subject, patch)
        self._seeds = iter(self._chance.sample(range(1 << 30), 1 << 16))
        self._numbers = numbers()
        self._clients: dict[int, Client] = {}  # by seed
        self._at_once = 1

    @property
    def broken(self) -> int:
        """The clients that got logits that are no numbers, in company as alone."""
        return sum("not finite" in str(client.log[-1]) for client in self.finished.values())

    def run(self, jobs: int) -> None:
        """Until the clients have asked for so many jobs and all of them have ended."""
        silent = 0
        while self._clients or self.jobs < jobs:
            if self._chance.random() < 0.02:
                self._at_once = self._chance.choice(AT_ONCE) * len(names_of(self._subject))
            if len(self._clients) < self._at_once and self.jobs < jobs and self._chance.random() < 0.5:
                self._open()
            silent = 0 if self._step() else silent + 1
            assert silent < PATIENCE, "nobody gets on any more"
            if self._clients and self._chance.random() < LEAVES:
                self._close(self._chance.choice(list(self._clients))).leave()
                self.left += 1
        assert not self._subject.idle or set(state(self._subject).slots_used.values()) == {0}

    def _open(self) -> None:
        seed = next(self._seeds)
        client = self._clients[seed] = Client(seed, self._numbers, names_of(self._subject))
        self._send(client, client.start())

    def _close(self, seed: int) -> Client:
        client = self._clients.pop(seed)
        self.jobs += client.jobs
        for command in client.leave():
            self._subject.handle(command)
        return client

    def _send(self, client: Client, commands: list) -> None:  # type: ignore[type-arg]
        for command in commands:
            assert self._subject.handle(command) == []

    def _step(self) -> bool:
        """One step of the worker and what the clients answer. Whether a job has ended."""
        injected = self.faults.count.total()
        outcomes = self._subject.step()
        state(self._subject)  # checks the integrity of trees and cache
        faulty = self.faults.count.total() > injected
        ended = [self._deliver(outcome, faulty) for outcome in outcomes]
        return any(ended)

    def _deliver(self, outcome: JobOutcome, faulty: bool) -> bool:
        seed, client = next(((s, c) for s, c in self._clients.items() if c.owns(outcome)), (None, None))
        if seed is None or client is None:
            return False
        failed = isinstance(outcome, JobFailed)
        before = len(client.log)
        self._send(client, client.react(outcome))
        if failed and faulty and "not finite" not in outcome.message:
            self._close(seed)
            self.hit += 1
        elif client.done:
            self.finished[seed] = self._close(seed)
        return len(client.log) > before


def alone(subject: WorkerModels, seed: int) -> list[Results | str]:
    """What the client of this seed is answered when nobody else is there."""
    for each in subject._schedulers.values():
        while each.prefix_cache.evict_one():
            pass
    client = Client(seed, numbers(), names_of(subject))
    commands = client.start()
    while True:
        for command in commands:
            subject.handle(command)
        if client.done:
            return client.log
        commands = [command for outcome in subject.step() if client.owns(outcome) for command in client.react(outcome)]


def assert_equal(company: list[Results | str], own: list[Results | str]) -> None:
    """Equal tokens and failures, and log-probabilities up to rounding."""
    assert len(company) == len(own)
    for got, expected in zip(company, own, strict=True):
        if isinstance(got, str) or isinstance(expected, str):
            assert got == expected
        else:
            for results, lone in zip(got, expected, strict=True):
                assert results == (pytest.approx(lone, abs=1e-4) if isinstance(lone[0], float) else lone)


def check(seed: int, jobs: int, patch: pytest.MonkeyPatch, adapters: int = 0) -> Fuzz:
    with patch.context() as injected:
        fuzz = Fuzz(seed, injected, adapters)
        fuzz.run(jobs)
    lone = models(4096, adapters)
    for client_seed, client in fuzz.finished.items():
        assert_equal(client.log, alone(lone, client_seed))
    return fuzz


@pytest.fixture
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Every injected fault logs a traceback, as it should."""
    caplog.set_level("CRITICAL", "w2s_core.worker")


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("adapters", [0, 2])
def test_every_survivor_of_a_crowd_gets_its_own_answer(monkeypatch: pytest.MonkeyPatch, adapters: int) -> None:
    """On one model, and on a base and two adapters of it, which run in the same forwards."""
    fuzz = check(1, 1000, monkeypatch, adapters)
    assert fuzz.jobs >= 1000
    assert len(fuzz.finished) > 200
    assert fuzz.left > 10
    assert fuzz.hit > 10
    assert fuzz.broken > 3
    assert fuzz.faults.count.keys() == {"_model", "draw_tokens", "score_answers", "allocate", "grow"}


@pytest.mark.slow
@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("seed", range(2, 12))
def test_every_survivor_of_ten_crowds_gets_its_own_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    fuzz = check(seed, 2000, monkeypatch)
    with capsys.disabled():
        ended = f"{len(fuzz.finished)} clients as alone ({fuzz.broken} of them by NaN)"
        print(f"\n{fuzz.jobs} jobs: {ended}, {fuzz.left} left, {fuzz.hit} hit by {dict(fuzz.faults.count)}")
