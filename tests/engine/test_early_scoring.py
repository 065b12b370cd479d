"""Early scoring changes when candidates are scored, not the results of the search."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes import FakeLargeModel, FakeProposals, FakeScorer
from w2s_core.engine import early_scoring as early_scoring_module
from w2s_core.engine.early_scoring import AsCompletedProposals, EarlyScoringProposer
from w2s_core.search.cbs import search
from w2s_core.search.randomness import copy_key, root_key
from w2s_core.types import Hypothesis, SamplingParams, TextPrompt

PROMPT = (1, 2, 3)


class InOrder(FakeProposals):
    """Proposals whose beams complete in the given `order`."""

    order: Sequence[int] = ()

    async def propose_as_completed(
        self, beam: Sequence[Hypothesis], *, k: int, length: int
    ) -> AsyncGenerator[tuple[int, list[Hypothesis]]]:
        for index in sorted(range(len(beam)), key=lambda i: self.order[i % len(self.order)] if self.order else i):
            yield index, await self.propose([beam[index]], k=k, length=length)
            await self.between()

    async def between(self) -> None:
        await asyncio.sleep(0)


def start(seed: int, copies: int) -> list[Hypothesis]:
    root = Hypothesis(key=root_key(seed))
    return [replace(root, key=copy_key(root.key, i)) for i in range(copies)]


@pytest.fixture(autouse=True)
def _no_batch_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrivals are scored at once, unless a test sets a window."""
    monkeypatch.setattr(early_scoring_module, "_BATCH_WINDOW_S", 0.0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), order=st.permutations(range(4)), w=st.integers(1, 4), k=st.integers(1, 3))
async def test_the_same_answers_with_the_same_scores(seed: int, order: list[int], w: int, k: int) -> None:
    results = []
    for early in (False, True):
        proposals = InOrder(FakeLargeModel(), PROMPT, SamplingParams())
        proposals.order = order
        async with FakeScorer().open(TextPrompt("x")) as scoring:
            proposer = EarlyScoringProposer(proposals, scoring) if early else proposals
            rounds = search(proposer, scoring, start(seed, w), w=w, k=k, length=3, budget=12)
            results.append([round_ async for round_ in rounds][-1].beam)
    assert results[0] == results[1]
    assert [y.score for y in results[0]] == [y.score for y in results[1]]


async def test_a_fast_beam_is_scored_before_a_slow_one_is_drawn() -> None:
    scored = asyncio.Event()

    class Slow(InOrder):
        async def between(self) -> None:
            await scored.wait()  # the next beam is not drawn before the first one's successors have been scored

    class Watched:
        scored_tokens = 0

        async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
            assert all(y.tokens == () for y in candidates[:1]), "the beam is named first"
            if any(y.tokens for y in candidates):
                scored.set()

    proposals = Slow(FakeLargeModel(), PROMPT, SamplingParams())
    async with asyncio.timeout(60):
        successors = await EarlyScoringProposer(proposals, Watched()).propose(start(1, 3), k=2, length=4)  # type: ignore[arg-type]
    assert len(successors) == 6


@pytest.mark.parametrize(("window_s", "early"), [(3600.0, False), (0.0, True)])
async def test_beams_that_end_together_are_scored_together(
    monkeypatch: pytest.MonkeyPatch, window_s: float, early: bool
) -> None:
    """However long the window is, it ends when the last beam has arrived."""
    monkeypatch.setattr(early_scoring_module, "_BATCH_WINDOW_S", window_s)

    class Together(InOrder):
        async def between(self) -> None:
            for _ in range(20):  # time enough to be scored alone
                await asyncio.sleep(0)

    async with FakeScorer().open(TextPrompt("x")) as scoring, asyncio.timeout(60):
        proposals = Together(FakeLargeModel(), PROMPT, SamplingParams())
        successors = await EarlyScoringProposer(proposals, scoring).propose(start(1, 3), k=2, length=4)
    assert len(successors) == 6
    assert bool(scoring.scored_tokens) == early


async def test_whoever_fails_ends_the_other() -> None:
    class Broken(InOrder):
        async def between(self) -> None:
            raise ConnectionError("gone")

    cancelled = asyncio.Event()

    class Waiting:
        async def expect(self, _candidates: Sequence[Hypothesis]) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            raise AssertionError("unreachable")

    before = asyncio.all_tasks()
    with pytest.raises(ConnectionError, match="gone"):
        await EarlyScoringProposer(Broken(FakeLargeModel(), PROMPT, SamplingParams()), Waiting()).propose(  # type: ignore[arg-type]
            start(1, 2), k=1, length=2
        )
    assert asyncio.all_tasks() == before


def test_local_proposals_end_together_and_stay_as_they_are() -> None:
    assert not isinstance(FakeProposals(FakeLargeModel(), PROMPT, SamplingParams()), AsCompletedProposals)
    assert isinstance(InOrder(FakeLargeModel(), PROMPT, SamplingParams()), AsCompletedProposals)
