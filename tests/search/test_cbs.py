"""The search against a brute-force oracle of algorithm 1, and the identities that define its corner cases."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import EOS, FakeLargeModel, FakeScorer, answer, fake_engine, letters
from w2s_core.engine.events import ChoiceFinished, RequestFinished
from w2s_core.search.cbs import distinct, search
from w2s_core.search.randomness import copy_key, root_key, successor_key, uniform
from w2s_core.types import GenerationRequest, Guidance, Hypothesis, SamplingParams, TextPrompt, Tokens

PIECES = {ord("a"): "a", ord("b"): "b", ord(" "): " ", 1: "ab", 2: "b "}  # tokens that overlap in text
SHARES = {ord("a"): 0.3, ord("b"): 0.25, ord(" "): 0.15, 1: 0.1, 2: 0.1}  # the rest ends the answer


class PieceDecoder:
    """Decodes the tokens of PIECES; the same text may be several sequences of tokens."""

    @property
    def verbatim(self) -> PieceDecoder:
        return self

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(PIECES[token] for token in tokens)


@dataclass(frozen=True)
class Answer:
    """The oracle's own idea of a hypothesis."""

    tokens: Tokens
    text: str
    key: int
    ended: bool = False
    stopped: bool = False

    @property
    def finished(self) -> bool:
        return self.ended or self.stopped

    def identity(self, *, last_round: bool) -> object:
        """An answer that does not grow any more is its text and how it ended; one that does, its tokens."""
        return (self.text, self.ended, self.stopped) if self.finished or last_round else self.tokens


def oracle_draw(u: float) -> int | None:
    """A token, or None for the end, as cumulated shares have it."""
    total = 0.0
    for token, share in SHARES.items():
        total += share
        if u < total:
            return token
    return None


def oracle_successor(parent: Answer, index: int, length: int, stops: Sequence[str]) -> Answer:
    """Draws token by token, then looks at every character for the end of a stop string."""
    key, tokens, ended = successor_key(parent.key, len(parent.tokens), index), parent.tokens, False
    while len(tokens) < len(parent.tokens) + length and not ended:
        token = oracle_draw(uniform(key, len(tokens)))
        tokens, ended = (tokens, True) if token is None else ((*tokens, token), False)
    text = "".join(PIECES[token] for token in tokens)
    for end in range(len(text) + 1):
        if found := [len(stop) for stop in stops if text[:end].endswith(stop)]:
            return Answer(tokens, text[: end - max(found)], key, stopped=True)
    return Answer(tokens, text, key, ended)


def nats(text: str, ended: bool) -> float:
    return text.count("a") - 0.5 * text.count("b") + (0.25 if ended else 0.0)


def oracle(seed: int, w: int, k: int, length: int, budget: int, copies: int, stops: Sequence[str] = ()) -> list[Answer]:
    """Algorithm 1 by brute force: every answer and every score from scratch."""
    beam = [Answer((), "", copy_key(root_key(seed), i)) for i in range(copies)]
    while budget > 0 and any(not y.finished for y in beam):
        pool, last = [y for y in beam if y.finished], budget <= length
        for parent in (y for y in beam if not y.finished):
            for index in range(k):
                y = oracle_successor(parent, index, min(length, budget), stops)
                if all(y.identity(last_round=last) != other.identity(last_round=last) for other in pool):
                    pool.append(y)
        pool.sort(key=lambda y: nats(y.text, y.ended), reverse=True)  # stable, as ties must be
        beam = pool[:w]
        budget -= length
    return beam


async def run_search(
    seed: int, w: int, k: int, length: int, budget: int, copies: int, stops: Sequence[str] = ()
) -> Sequence[Hypothesis]:
    large = FakeLargeModel(lambda prompt, answer: {**SHARES, EOS: 0.1})
    large.decoder = PieceDecoder()  # type: ignore[assignment]
    scorer, sampling = FakeScorer(nats), SamplingParams(stop=tuple(stops))
    beam: Sequence[Hypothesis] = [Hypothesis(key=copy_key(root_key(seed), i)) for i in range(copies)]
    async with large.open((), sampling, rows=w * k) as proposals, scorer.open(TextPrompt("")) as scoring:
        async for chunk in search(proposals, scoring, beam, w=w, k=k, length=length, budget=budget):
            beam = chunk.beam
            assert len(beam) <= w
    return beam


sizes = st.integers(1, 4)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**64),
    w=sizes,
    k=sizes,
    length=st.integers(1, 7),
    budget=st.integers(1, 20),
    stops=st.lists(st.text("ab ", min_size=1, max_size=3), max_size=3),
)
def test_search_equals_the_oracle(seed: int, w: int, k: int, length: int, budget: int, stops: list[str]) -> None:
    """Also that no two hypotheses of a beam are the same answer, and that as many are kept as there are answers."""
    found = asyncio.run(run_search(seed, w, k, length, budget, copies=w, stops=stops))
    expected = oracle(seed, w, k, length, budget, copies=w, stops=stops)
    assert [(y.text, y.ended, y.key) for y in found] == [(y.text, y.ended, y.key) for y in expected]
    assert len({(y.text, y.ended, y.finished) for y in found}) == len(found) >= min(w, 1)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**64), n=st.integers(1, 6), length=st.integers(1, 7))
def test_width_and_successors_of_one_are_plain_sampling(seed: int, n: int, length: int) -> None:
    sampling = SamplingParams(max_tokens=20, seed=seed)
    plain = answers(GenerationRequest("plain", (TextPrompt("x"),), sampling))
    guidance = Guidance("cbs", {"positive": 1.0}, 1, 1, length)
    guided = answers(GenerationRequest("plain", (TextPrompt("x"),), sampling, guidance))
    assert plain[0].tokens == guided[0].tokens
    assert plain[0].finish_reason == guided[0].finish_reason


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**64), n=st.integers(1, 6), budget=st.integers(1, 12))
def test_one_beam_with_a_whole_answer_a_chunk_is_best_of_n(seed: int, n: int, budget: int) -> None:
    sampling = SamplingParams(max_tokens=budget, seed=seed)
    prompts = (TextPrompt("x"),)
    samples = answers(GenerationRequest("plain", prompts, sampling, n=n))
    best = max(samples, key=lambda y: y.text.count("a") - 0.5 * y.text.count("b"))
    pairs = {"positive": 1.0}
    wide = answers(GenerationRequest("plain", prompts, sampling, Guidance("cbs", pairs, 1, n, budget)))
    named = answers(GenerationRequest("plain", prompts, sampling, Guidance("best_of_n", pairs, successors=n)))
    assert wide[0].text == named[0].text == best.text


def answers(request: GenerationRequest) -> list[Hypothesis]:
    """The choices of a request to the fake engine."""
    return asyncio.run(answer(fake_engine(FakeLargeModel(letters("ab ", 0.1))), request))


def test_a_finished_answer_competes_once_and_is_never_grown() -> None:
    seen: list[int] = []

    class Proposals:
        sampled_tokens = 0

        async def propose(self, beam: Sequence[Hypothesis], *, k: int, length: int) -> list[Hypothesis]:
            seen.append(len(beam))
            assert all(not y.finished for y in beam)
            return [
                Hypothesis((*y.tokens, i), f"{y.text}{i}", ended=i == 0, finish_reason="stop" if i == 0 else None)
                for y in beam
                for i in range(k)
            ]

    async def run() -> list[Hypothesis]:
        scorer = FakeScorer(lambda text, ended: 5.0 if ended else 1.0)
        beam: Sequence[Hypothesis] = [Hypothesis()]
        async with scorer.open(TextPrompt("")) as scoring:
            async for chunk in search(Proposals(), scoring, beam, w=3, k=2, length=1, budget=4):  # type: ignore[arg-type]
                beam = chunk.beam
        return list(beam)

    beam = asyncio.run(run())
    # One ends in each round; copies of the first would have filled the beam after the second.
    assert seen == [1, 1, 1]
    assert [y.tokens for y in beam] == [(0,), (1, 0), (1, 1, 0)]


def test_equal_successors_are_merged_and_the_first_one_stays() -> None:
    first, other, again = Hypothesis((1, 2), key=1), Hypothesis((1, 3), key=2), Hypothesis((1, 2), key=3)
    assert [y.key for y in distinct([first, other, again])] == [1, 2]
    ended = Hypothesis((1, 2), key=4, ended=True, finish_reason="stop")
    assert [y.key for y in distinct([first, ended])] == [1, 4]
    cut, cut_elsewhere = (replace(ended, tokens=tokens, ended=False, key=6) for tokens in ((1, 2), (1, 3)))
    assert [y.key for y in distinct([ended, cut, cut_elsewhere])] == [4, 6], "the same text, however it is tokenized"
    assert [y.key for y in distinct([first, other], last_round=True)] == [1]
    full = replace(other, finish_reason="length")
    assert [y.key for y in distinct([full, first], last_round=True)] == [2], "both end for want of tokens"
    shown = replace(ended, text="!", key=5)
    assert [y.key for y in distinct([ended, shown])] == [4, 5], "ended by different tokens, which show in the text"


def test_a_round_may_propose_only_what_has_finished_before() -> None:
    """`xb` is cut to `x` in the first chunk, and so is `xaab` in the second, by a longer stop string."""

    def distribution(prompt: Tokens, answer: Tokens) -> dict[int, float]:
        return {0: {ord("x"): 1.0}, 1: {ord("a"): 0.5, ord("b"): 0.5}, 2: {ord("a"): 1.0}}.get(
            len(answer), {ord("b"): 1.0}
        )

    sampling = SamplingParams(max_tokens=12, seed=1, stop=("b", "aab"))
    guidance = Guidance("cbs", {"positive": 1.0}, beam_width=2, successors=2, chunk_length=3, trace=True)
    request = GenerationRequest("plain", (TextPrompt("?"),), sampling, guidance)

    async def run() -> RequestFinished:
        events = [event async for event in fake_engine(FakeLargeModel(distribution)).generate(request)]
        assert isinstance(events[-1], RequestFinished)
        return events[-1]

    report = asyncio.run(run()).guidance
    assert report is not None
    assert report.tree is not None
    assert [[y.text for y in chunk] for chunk in report.tree[0]] == [["xaa", "x"], []]


def test_greedy_successors_merge_into_one() -> None:
    large = FakeLargeModel(lambda prompt, answer: {ord("a"): 0.6, ord("b"): 0.4})

    async def run() -> list[int]:
        engine = fake_engine(large)
        sampling = SamplingParams(max_tokens=9, temperature=0)
        async for event in engine.generate(GenerationRequest("guided", (TextPrompt("x"),), sampling)):
            if isinstance(event, ChoiceFinished):
                assert event.hypothesis.text == "a" * 9
        return [beam for beam, _, _ in large.calls]

    assert asyncio.run(run()) == [2, 1, 1]


@pytest.mark.parametrize(("w", "k"), [(2, 3), (4, 4)])
def test_successors_of_different_beams_are_drawn_independently(w: int, k: int) -> None:
    """With 2 equally likely letters and 64 positions, two of w·k lineages coincide with p < (wk)²·2⁻⁶⁵ < 10⁻¹⁶."""
    root = root_key(7)
    keys = [successor_key(copy_key(root, i), 0, j) for i in range(w) for j in range(k)]
    rows = {tuple(uniform(key, t) < 0.5 for t in range(64)) for key in keys}
    assert len(rows) == w * k
