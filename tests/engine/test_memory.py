"""What a request holds grows with the length of its answer, not with its square."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from tests.fakes import EOS, FakeLargeModel, FakeProposals, FakeScorer, FakeScoring, fake_engine
from w2s_core.engine.events import RequestFinished
from w2s_core.guidance import Trace
from w2s_core.interfaces import Scoring
from w2s_core.search.randomness import successor_key
from w2s_core.types import GenerationRequest, Guidance, Hypothesis, Prompt, SamplingParams, Score, TextPrompt, Tokens


class LongProposals(FakeProposals):
    """Every chunk is one letter, repeated, and a special token, so that drawing it costs next to nothing."""

    def _successor(self, parent: Hypothesis, index: int, length: int) -> Hypothesis:
        new = (*(97 + successor_key(parent.key, len(parent.tokens), index) % 26,) * (length - 1), EOS)
        return self._successors.build(parent, index, new, (-1.0,) * length, ended=False)


class LongModel(FakeLargeModel):
    @asynccontextmanager
    async def open(self, prompt: Tokens, sampling: SamplingParams, *, rows: int) -> AsyncIterator[FakeProposals]:
        yield LongProposals(self, prompt, sampling)


class ForgetfulScorer(FakeScorer):
    """Unlike `FakeScorer` it does not keep what it has seen."""

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[Scoring]:
        yield ForgetfulScoring(self)


class ForgetfulScoring(FakeScoring):
    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        return [Score(float(y.key % 1000)) for y in candidates]


def peak_bytes(request: GenerationRequest) -> int:
    """The most that a request holds at once, its last event included."""

    async def run() -> None:
        engine = fake_engine(LongModel(context_length=10**5), {"positive": ForgetfulScorer()})
        async for event in engine.generate(request):
            last = event
        assert isinstance(last, RequestFinished)

    tracemalloc.start()
    try:
        asyncio.run(run())
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["plain", "guided", "trace", "rounds", "tokens", "special tokens"])
def test_memory_grows_with_the_length_of_an_answer(kind: str) -> None:
    trace: Trace = "stream" if kind == "rounds" else kind == "trace"
    guidance = Guidance("cbs" if kind != "plain" else "none", {"positive": 1.0}, 4, 4, 5, trace=trace)
    prompts = (TextPrompt("x"),)
    request = GenerationRequest("guided", prompts, guidance=guidance, with_tokens=kind == "tokens")
    sampling = SamplingParams(seed=1, skip_special_tokens=kind != "special tokens")
    shorter, longer = (
        peak_bytes(replace(request, sampling=replace(sampling, max_tokens=length))) for length in (1000, 2000)
    )
    assert longer < 2.5 * shorter, f"{shorter} bytes for 1,000 tokens, {longer} for 2,000"
