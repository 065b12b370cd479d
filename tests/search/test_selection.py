"""Selection: ranks against ranks from scratch, draws against their definitions, and defaults that are the paper's."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeLargeModel, FakeScorer, answer, fake_engine, letters
from w2s_core.guidance import Guidance
from w2s_core.search.combination import combined_scores, robust_mixture
from w2s_core.search.repetition import advance, count_repeats
from w2s_core.search.selection import Selector, pessimistic_log_weights, successors_by_round
from w2s_core.types import GenerationRequest, Hypothesis, SamplingParams, TextPrompt

PIECES = ["a", "b ", " a", "A", ", ", "don", "'t ", "’", "é", "的", "中", "ด", "\n", "1", ""]
CBS = Guidance("cbs", {"positive": 1.0}, beam_width=3, successors=3, chunk_length=4)
ASK = GenerationRequest("guided", (TextPrompt("x"),), SamplingParams(max_tokens=40, seed=1))


def repeats_from_scratch(text: str) -> int:
    words = [
        w.strip("'’").lower() for w in re.findall(r"[的中ด]|[^\W的中ด]+(?:['’][^\W的中ด]*)*|['’][^\W的中ด'’]+", text)
    ]
    words = [w for w in words if w]
    ngrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(ngrams) - len(set(ngrams))


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("It is amazing. It is amazing.", 1),
        ("It is amazing. It is amazing. it is AMAZING!", 4),
        ("It is amazing, is it?", 0),
        ("don't you don't you don't", 1),
        ("'He said' he said he said", 2),
        ("的的的的", 1),
        ("", 0),
    ],
)
def test_repeated_trigrams(text: str, repeats: int) -> None:
    assert count_repeats(text) == repeats


@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=4).map("".join), max_size=12), st.integers(0, 60))
def test_repeats_counted_as_an_answer_grows_are_those_of_its_whole_text(chunks: list[str], cut: int) -> None:
    """Chunks end anywhere, inside of words as well; a stop string may cut the text behind what was read."""
    text, state = "", None
    for chunk in chunks:
        text += chunk
        assert count_repeats(text, state) == count_repeats(text)
        shorter = text[:cut]
        assert count_repeats(shorter, advance(text, state)) == count_repeats(shorter)
        state = advance(text, state)
        assert state.seen == advance(text).seen


def test_a_stop_string_may_take_repeats_back() -> None:
    assert count_repeats("a a a a", advance("a a a a a ")) == 1
    assert count_repeats("a a", advance("a a a a a ")) == 0


@given(st.lists(st.sampled_from(["a ", "b ", "的", "A. ", "c, "]), max_size=30))
def test_repeats_are_trigrams_less_distinct_ones(pieces: list[str]) -> None:
    assert count_repeats("".join(pieces)) == repeats_from_scratch("".join(pieces))


@st.composite
def growing(draw: st.DrawFn) -> tuple[Guidance, list[list[tuple[int, str, float]]]]:
    """Options, and for each round the candidates as (parent in the beam, new text, nats of the score)."""
    options = Guidance(
        "cbs",
        {"p": 1.0},
        repetition=draw(st.sampled_from([0.0, 0.5, 1.0])),
        fluency=draw(st.sampled_from([0.0, 0.3])),
        length_penalty=draw(st.sampled_from([0.0, 0.5, 1.0])),
    )
    candidate = st.tuples(
        st.integers(0, 2), st.sampled_from(["a ", "b ", "a", " b", "a b a b", "的"]), st.floats(-5, 5)
    )
    return options, draw(st.lists(st.lists(candidate, min_size=1, max_size=6), min_size=1, max_size=6))


@given(growing())
def test_ranks_of_a_growing_search_are_ranks_from_scratch(
    drawn: tuple[Guidance, list[list[tuple[int, str, float]]]],
) -> None:
    options, rounds = drawn
    selector, key = Selector(options), 100
    beam = [Hypothesis(key=i) for i in range(3)]
    for candidates in rounds:
        pool = []
        for position, (parent, text, nats) in enumerate(candidates):
            y = beam[parent % len(beam)]
            first = position == next(i for i, c in enumerate(candidates) if c[0] % len(beam) == parent % len(beam))
            key += 1
            pool.append(
                replace(
                    y,
                    tokens=(*y.tokens, 1),
                    text=y.text + text,
                    logprobs=(*y.logprobs, -abs(nats)),
                    key=y.key if first else key,
                    parent=replace(y, parent=None),
                    score=y.score + nats,
                )
            )
        ranked = selector.rank(pool)
        for y in ranked:
            expected = y.score - options.repetition * count_repeats(y.text) + options.fluency * sum(y.logprobs)
            assert y.rank == pytest.approx(expected / len(y.tokens) ** options.length_penalty)
        beam = selector.select(ranked, 3)
        assert [y.rank for y in beam] == sorted((y.rank for y in ranked), reverse=True)[:3]


def hypotheses(ranks: list[float], seed: int = 0) -> list[Hypothesis]:
    return [Hypothesis(key=1000 * seed + i, tokens=(i,), rank=rank) for i, rank in enumerate(ranks)]


def draws(select: object, ranks: list[float], w: int = 1, count: int = 4000) -> Counter[tuple[int, ...]]:
    found: Counter[tuple[int, ...]] = Counter()
    for seed in range(count):
        selector = Selector(replace(CBS, select=select))  # type: ignore[arg-type]
        found[tuple(sorted(y.tokens[0] for y in selector.select(hypotheses(ranks, seed), w)))] += 1
    return found


def test_softmax_draws_without_replacement() -> None:
    ranks, tau = [1.0, 0.0, 2.0], 2.0
    powers = [math.exp(rank / tau) for rank in ranks]
    shares = [power / sum(powers) for power in powers]
    ones = draws({"softmax": tau}, ranks)
    assert [ones[(i,)] / 4000 for i in range(3)] == pytest.approx(shares, abs=0.03)
    pairs = draws({"softmax": tau}, ranks, w=2)
    first_two = shares[0] * shares[1] * (1 / (1 - shares[0]) + 1 / (1 - shares[1]))
    assert pairs[(0, 1)] / 4000 == pytest.approx(first_two, abs=0.03)


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=8), st.floats(0.1, 10))
def test_pessimistic_weights_are_their_definition(ranks: list[float], beta: float) -> None:
    weights = [math.exp(weight) for weight in pessimistic_log_weights(ranks, beta)]
    assert fmean(weights) / beta == pytest.approx(1.0)
    differences = {round(rank - weight, 6) for rank, weight in zip(ranks, weights, strict=True) if weight}
    assert max(differences) - min(differences) < 1e-5, "one threshold for all"
    threshold = max(differences)
    assert all(rank <= threshold + 1e-5 for rank, weight in zip(ranks, weights, strict=True) if not weight)


def test_pessimistic_draws_leave_out_the_worst() -> None:
    found = draws({"pessimistic": 0.5}, [0.0, 0.2, 3.0])
    weights = [math.exp(weight) for weight in pessimistic_log_weights([0.0, 0.2, 3.0], 0.5)]
    assert [found[(i,)] / 4000 for i in range(3)] == pytest.approx([w / sum(weights) for w in weights], abs=0.03)


def test_a_beam_that_is_drawn_is_the_same_for_the_same_seed_and_another_in_the_next_round() -> None:
    selectors = [Selector(replace(CBS, select={"softmax": 5.0})) for _ in range(2)]
    pool = hypotheses([float(i) for i in range(12)])
    first, second = ([selector.select(pool, 3) for _ in range(4)] for selector in selectors)
    assert first == second
    assert len({tuple(y.key for y in beam) for beam in first}) > 1


def two_pairs(
    combine: str, values: list[tuple[float, float]], weights: tuple[float, float] = (1.0, 1.0)
) -> list[float]:
    guidance = Guidance("cbs", {"p": weights[0], "q": weights[1]}, combine=combine)  # type: ignore[arg-type]
    pool = [Hypothesis(score=weights[0] * p + weights[1] * q, scores={"p": p, "q": q}) for p, q in values]
    return combined_scores(pool, guidance)


def test_the_minimum_takes_the_pair_that_likes_an_answer_least() -> None:
    scores = two_pairs("min", [(3.0, -30.0), (1.0, 10.0), (-3.0, 30.0)])
    assert max(range(3), key=scores.__getitem__) == 1
    assert two_pairs("sum", [(3.0, 1.0)]) == [4.0]
    against = two_pairs("min", [(1.0, 5.0), (0.0, -5.0)], (1.0, -1.0))
    assert against[0] == pytest.approx(against[1]), "what one pair gains, the other loses"
    assert two_pairs("min", [(1.0, 1.0), (1.0, 1.0)]) == [2.0, 2.0], "no deviation, no preference"
    assert two_pairs("min", [(-8.0, 1.0), (4.0, 9.0), (9.0, 2.0)], (1.0, 0.0)) == [-8.0, 4.0, 9.0], "no weight, no say"


def test_the_robust_mixture_is_that_of_the_formula() -> None:
    """Against the formula with numerical gradients."""
    rows = [(1.0, -0.5, 0.2), (-1.0, 1.5, 0.1), (0.3, -0.2, -0.6)]

    def softmax(values: list[float]) -> list[float]:
        powers = [math.exp(v) for v in values]
        return [p / sum(powers) for p in powers]

    def objective(theta: list[float]) -> float:
        w = softmax(theta)
        return math.log(fmean(math.exp(sum(a * b for a, b in zip(w, row, strict=True))) for row in rows))

    theta, step = [0.0] * 3, 1e-5
    for i in range(1, 11):
        gradient = []
        for j in range(3):
            up, down = ([t + sign * step * (k == j) for k, t in enumerate(theta)] for sign in (1, -1))
            gradient.append((objective(up) - objective(down)) / (2 * step))
        theta = [t - max(-10.0, min(10.0, g)) / math.sqrt(i) for t, g in zip(theta, gradient, strict=True)]
    assert robust_mixture(rows) == pytest.approx(softmax(theta), abs=1e-6)


@given(st.floats(0.3, 1), st.integers(1, 6), st.integers(1, 60), st.integers(1, 9))
def test_a_schedule_falls_under_the_same_total(decay: float, k: int, budget: int, length: int) -> None:
    guidance = Guidance(successors=k, chunk_length=length, schedule={"decay": decay})
    schedule, rounds = successors_by_round(guidance, budget), math.ceil(budget / length)
    assert len(schedule) == rounds
    sizes = [min(length, budget - i * length) for i in range(rounds)]
    assert sum(successors * size for successors, size in zip(schedule, sizes, strict=True)) <= k * budget
    assert all(1 <= later <= earlier for earlier, later in zip(schedule, schedule[1:], strict=False))
    if decay == 1:
        assert schedule == (k,) * rounds


async def test_a_schedule_draws_what_it_says() -> None:
    large = FakeLargeModel(letters("ab", eos=0))
    guidance = replace(CBS, schedule={"decay": 0.6})
    await answer(fake_engine(large), replace(ASK, guidance=guidance))
    assert tuple(k for _, k, _ in large.calls) == successors_by_round(guidance, 40)
    assert large.calls[0][1] > 3 > large.calls[-1][1]


async def test_brakes_make_answers_that_repeat_less() -> None:
    scorer = FakeScorer(lambda text, ended: float(text.count("a ")))
    texts = []
    for repetition in (0.0, 5.0):
        engine = fake_engine(FakeLargeModel(letters("a ", eos=0)), {"positive": scorer})
        [y] = await answer(engine, replace(ASK, guidance=replace(CBS, repetition=repetition)))
        assert y.rank == y.score - repetition * count_repeats(y.text)
        texts.append(y.text)
    assert count_repeats(texts[1]) < count_repeats(texts[0])


async def test_a_search_that_stops_early_ends_with_its_best_answer() -> None:
    scorer = FakeScorer(lambda text, ended: 100.0 * ended)
    lengths = {}
    for early in (False, True):
        large = FakeLargeModel(letters("ab", eos=0.05))
        guidance = replace(CBS, early_stopping=early)
        [y] = await answer(fake_engine(large, {"positive": scorer}), replace(ASK, guidance=guidance))
        assert y.ended
        lengths[early] = len(large.calls)
    assert lengths[True] < lengths[False]


async def test_a_search_that_stops_early_has_finished_the_answers_that_are_wanted() -> None:
    scorer = FakeScorer(lambda text, ended: 100.0 * ended)
    engine = fake_engine(FakeLargeModel(letters("ab", eos=0.05)), {"positive": scorer})
    found = await answer(engine, replace(ASK, guidance=replace(CBS, early_stopping=True), n=3))
    assert [y.finish_reason for y in found] == ["stop"] * 3


@pytest.mark.parametrize(
    "options",
    [
        {"repetition": 1.0},
        {"fluency": 0.5, "length_penalty": 1.0},
        {"select": {"softmax": 1.0}},
        {"select": {"pessimistic": 1.0}},
        {"early_stopping": True},
        {"schedule": {"decay": 0.8}},
        {"pairs": {"positive": 1.0, "polite": 0.5}, "combine": "min"},
        {"pairs": {"positive": 1.0, "polite": 0.5}, "combine": "robust"},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["cbs", "best_of_n"])
async def test_streams_are_answers_with_every_option(options: dict[str, object], method: str) -> None:
    """`answer` compares what was streamed with the whole, and the n answers come best first."""
    guidance = replace(CBS, method=method, **options)  # type: ignore[arg-type]
    found = await answer(fake_engine(FakeLargeModel(letters("ab ", eos=0.05))), replace(ASK, guidance=guidance, n=3))
    ranks = [y.rank for y in found]
    assert ranks == sorted(ranks, reverse=True)
