"""A search that ends because answers outgrow the pair: it ends at all, and holds no answer twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from tests.fakes import EOS, ByteTokenizer, FakeLargeModel, FakeScorer, FakeScoring, answer, fake_engine
from w2s_core.engine.pair_context import AnswerCutter, search_within_pair_context
from w2s_core.errors import PairContextLengthError, UpstreamContextLengthError
from w2s_core.large.successors import SuccessorBuilder
from w2s_core.scorers.pair_model import PairModel
from w2s_core.types import GenerationRequest, Guidance, Hypothesis, Prompt, SamplingParams, Score, TextPrompt

STOP = SamplingParams(stop=("X",))
ASK = GenerationRequest("guided", (TextPrompt("x"),), SamplingParams(max_tokens=6, seed=1), n=2)


class StoppedInItsSecondChunk:
    """A `Proposer` of the answer "abc", at whose end is a stop string."""

    def __init__(self) -> None:
        self._successors = SuccessorBuilder(ByteTokenizer(), (1,), STOP)  # type: ignore[arg-type]

    async def propose(self, beam: Sequence[Hypothesis], *, k: int, length: int) -> list[Hypothesis]:
        chunks = [b"cX" if y.tokens else b"ab" for y in beam]
        return [
            self._successors.build(y, 0, tuple(chunk), (0.0,) * 2, ended=False)
            for y, chunk in zip(beam, chunks, strict=True)
        ]


class SmallPair(FakeScoring):
    """Has room for three tokens. An answer that is cut off takes two for each letter, others one."""

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        lengths = {(y.text, y.ended): len(y.tokens) * (1 + y.finished) for y in candidates}
        if max(lengths.values()) > 3:
            raise PairContextLengthError("pair", 5, 2, lengths)
        return await super().score(candidates)


async def test_a_search_ends_before_an_answer_that_no_cut_behind_the_beam_makes_fit() -> None:
    """A shared vocabulary: an answer is scored by the tokens that were drawn, but encoded anew once it is cut."""
    rounds = search_within_pair_context(
        StoppedInItsSecondChunk(),
        SmallPair(FakeScorer()),
        [Hypothesis()],
        AnswerCutter(ByteTokenizer(), (1,), STOP),  # type: ignore[arg-type]
        w=1,
        k=1,
        length=2,
        budget=6,
    )
    assert [[y.text for y in round_.beam] for round_ in [round_ async for round_ in rounds]] == [["ab"]]


class FullAfterOneRound(FakeScoring):
    """At a provider, which alone can tell that answers are too long."""

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        if len(candidates[0].tokens) > 1:
            raise UpstreamContextLengthError("too long")
        return await super().score(candidates)


class ProvidersPair(FakeScorer):
    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[FakeScoring]:
        yield FullAfterOneRound(self)


async def test_a_search_that_ends_early_gives_no_answer_twice() -> None:
    """Two tokens that begin a character are two hypotheses while they may grow, and one answer if they do not."""
    likes_nothing = ProvidersPair(lambda text, ended: -float(len(text)))
    model = FakeLargeModel(lambda prompt, answer: {0xC3: 0.3, 0xC4: 0.3, ord("a"): 0.4})
    guidance = Guidance("cbs", {"positive": 1.0}, beam_width=3, successors=8, chunk_length=1)
    engine = fake_engine(model, {"positive": likes_nothing}, guidance=guidance)
    assert [y.text for y in await answer(engine, ASK)] == ["", "a"]


class TwoEnds:
    """A `Proposer` of one text twice: ended by the model, whose EOS is one token more, and by a stop string."""

    async def propose(self, beam: Sequence[Hypothesis], *, k: int, length: int) -> list[Hypothesis]:
        stopped = Hypothesis(tuple(b"abc"), "abc", key=1, finish_reason="stop", parent=beam[0])
        return [replace(stopped, key=2, ended=True), stopped]


class RoomForThree(FakeScoring):
    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        answers = [(*y.tokens, *(EOS,) * y.ended) for y in candidates]
        model = PairModel("pair", ByteTokenizer(), shares_tokens=False)  # type: ignore[arg-type]
        model.check_length((1, 2), candidates, answers, 5)
        return await super().score(candidates)


async def test_of_two_answers_with_one_text_the_one_that_is_too_long_is_cut() -> None:
    rounds = search_within_pair_context(
        TwoEnds(),
        RoomForThree(FakeScorer()),
        [Hypothesis()],
        AnswerCutter(ByteTokenizer(), (1,), SamplingParams()),  # type: ignore[arg-type]
        w=2,
        k=2,
        length=4,
        budget=4,
    )
    [round_] = [round_ async for round_ in rounds]
    assert [(y.text, y.finish_reason) for y in round_.candidates] == [("ab", "length"), ("abc", "stop")]
