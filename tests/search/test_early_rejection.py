"""Early rejection: best-of-N gives up answers that rank low while they grow, among the N that it would have drawn."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_engine import events_of
from tests.fakes import FakeLargeModel, FakeScorer, answer, fake_engine, letters
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import RequestFinished
from w2s_core.errors import RequestError
from w2s_core.guidance import Guidance
from w2s_core.search.repetition import count_repeats
from w2s_core.types import GenerationRequest, Hypothesis, SamplingParams, TextPrompt

BUDGET = 24
ASK = GenerationRequest("guided", (TextPrompt("x"),), SamplingParams(max_tokens=BUDGET, seed=1))


def taste(text: str, _ended: bool) -> float:
    """Likes all texts differently, so that none tie."""
    return crc32(text.encode()) / 2**29


def engine_of(eos: float, alphabet: str = "ab cdefghijklmnop") -> Engine:
    return fake_engine(FakeLargeModel(letters(alphabet, eos=eos)), {"positive": FakeScorer(taste)})


async def searched(engine: Engine, request: GenerationRequest) -> tuple[list[Hypothesis], int]:
    """The answers, and the number of tokens that were sampled."""
    last = (await events_of(engine, request))[-1]
    assert isinstance(last, RequestFinished)
    assert last.guidance is not None
    return await answer(engine, request), last.guidance.sampled_tokens


def simulated(whole: Sequence[Hypothesis], guidance: Guidance, n: int) -> tuple[list[str], int]:
    """The n best texts and the tokens that are drawn for them, given the N answers that best-of-N draws."""

    def rank(text: str) -> float:
        return taste(text, False) - guidance.repetition * count_repeats(text)

    growing, drawn = list(whole), 0
    for start in range(0, BUDGET, guidance.chunk_length):
        end = min(BUDGET, start + guidance.chunk_length)
        live = [y for y in growing if y.length > start]
        drawn += sum(min(y.length, end) - start for y in live)
        unfinished = [y for y in growing if y.length > end or (y.length == end and not y.ended)]
        finished = list({y.text: y for y in reversed(growing) if y not in unfinished}.values())  # equal ones merge
        if end == BUDGET or not unfinished:
            break
        staying = len(unfinished) - math.floor(len(unfinished) * guidance.early_rejection)
        by_rank = sorted(unfinished, key=lambda y: rank(y.text[:end]), reverse=True)
        growing = finished + by_rank[: max(n - len(finished), staying)]
    texts = sorted({y.text for y in growing}, key=rank, reverse=True)
    return (texts + texts[-1:] * n)[:n], drawn


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 9),
    n=st.integers(1, 3),
    length=st.integers(1, 30),
    fraction=st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.9]),
    repetition=st.sampled_from([0.0, 1.0]),
    eos=st.sampled_from([0.0, 0.1]),
)
def test_rejection_is_that_of_a_simulation_on_whole_answers(
    seed: int, rows: int, n: int, length: int, fraction: float, repetition: float, eos: float
) -> None:
    n = min(n, rows)
    pairs = {"positive": 1.0}
    guidance = Guidance(
        "best_of_n", pairs, 1, rows, length, repetition=repetition, early_rejection=fraction, max_sampled_tokens=1000
    )
    request = replace(ASK, sampling=replace(ASK.sampling, seed=seed), n=n, guidance=guidance)
    engine = engine_of(eos)
    whole = asyncio.run(answer(engine, replace(request, n=rows, model="plain", guidance=Guidance("none"))))
    found, drawn = asyncio.run(searched(engine, request))
    assert ([y.text for y in found], drawn) == simulated(whole, guidance, n)


async def test_unfinished_answers_that_are_still_alike_go_on_apart() -> None:
    guidance = Guidance("best_of_n", {"positive": 1.0}, successors=8, chunk_length=1, early_rejection=0.01)
    large = FakeLargeModel(letters("ab", eos=0))
    await answer(fake_engine(large), replace(ASK, guidance=guidance))
    assert [(rows, k) for rows, k, _ in large.calls] == [(1, 8)] + [(8, 1)] * (BUDGET - 1)


@settings(max_examples=60, deadline=None)
@given(ceiling=st.integers(8, 150), n=st.integers(1, 3), fraction=st.sampled_from([0.3, 0.5]))
def test_a_ceiling_on_sampled_tokens_counts_those_that_are_not_drawn(ceiling: int, n: int, fraction: float) -> None:
    guidance = Guidance("best_of_n", {"positive": 1.0}, 1, 8, 3, early_rejection=fraction, max_sampled_tokens=ceiling)
    found, drawn = asyncio.run(searched(engine_of(eos=0), replace(ASK, n=n, guidance=guidance)))
    assert drawn <= ceiling
    assert found[0].length == BUDGET or ceiling - drawn < 8
    assert found[0].length >= min(BUDGET, ceiling // 8)


async def test_plain_sampling_rejects_nothing() -> None:
    plain = Guidance("none", {"positive": 1.0}, 2, 2, 3)
    texts = [
        [y.text for y in await answer(engine_of(eos=0.1), replace(ASK, guidance=guidance))]
        for guidance in (plain, replace(plain, early_rejection=0.5))
    ]
    assert texts[0] == texts[1]


async def test_a_beam_search_refuses_it() -> None:
    guidance = Guidance("cbs", {"positive": 1.0}, 2, 2, 3, early_rejection=0.5)
    with pytest.raises(RequestError, match="it is for best_of_n alone") as caught:
        await answer(engine_of(eos=0.1), replace(ASK, guidance=guidance))
    assert caught.value.param == "guidance.early_rejection"


async def test_a_ceiling_far_above_the_answer_costs_no_time() -> None:
    """It is a client's number: counting up to it would hold up every other request for minutes."""
    guidance = Guidance("best_of_n", {"positive": 1.0}, 1, 2, 1, early_rejection=0.5, max_sampled_tokens=2**31 - 1)
    [found] = await answer(engine_of(eos=0), replace(ASK, guidance=guidance))
    assert found.length == BUDGET


class Sparing(FakeLargeModel):
    """Plans as a provider does that is asked for three tokens more than are kept, so that no character is cut."""

    def longest_answer(self, drawn: int, chunk_length: int | None) -> int:
        assert chunk_length is not None
        calls, rest = divmod(drawn, chunk_length + 3)
        return calls * chunk_length + min(rest, chunk_length)


@given(ceiling=st.integers(60, 400), rows=st.integers(2, 8), chunk=st.integers(1, 6))
def test_a_ceiling_counts_what_a_provider_draws_to_spare(ceiling: int, rows: int, chunk: int) -> None:
    large = Sparing(letters("ab", eos=0))
    guidance = Guidance("best_of_n", {"positive": 1.0}, 1, rows, chunk, early_rejection=0.5, max_sampled_tokens=ceiling)
    [found] = asyncio.run(answer(fake_engine(large), replace(ASK, guidance=guidance)))
    drawn = [live * k * (length + 3) for live, k, length in large.calls]
    drawn[-1] -= 3 * large.calls[-1][0] * large.calls[-1][1]  # it asks for no more than the answer may still have
    assert sum(drawn) <= ceiling
    assert found.length > 0
