"""Planning over fakes: merged guidance, token budgets, and requests that are refused with the field at fault."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_engine import ASK, choices, events_of, texts
from tests.fakes import DEFAULT_GUIDANCE, FakeLargeModel, FakeScorer, answer, fake_engine, letters
from w2s_core.config import Limits, ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import RequestFinished
from w2s_core.errors import ContextLengthError, RequestError, UnknownModelError
from w2s_core.types import ChatPrompt, Guidance, SamplingParams, TextPrompt


async def test_best_of_without_pairs_ranks_by_likelihood() -> None:
    large = FakeLargeModel(lambda prompt, answer: {ord("a"): 0.7, ord("b"): 0.3})
    request = replace(ASK, model="plain", best_of=8)
    [choice] = choices(await events_of(fake_engine(large), request)).values()
    samples = choices(await events_of(fake_engine(large), replace(request, best_of=None, n=8))).values()
    best = max(samples, key=lambda c: sum(c.hypothesis.logprobs) / len(c.hypothesis.logprobs))
    assert choice.hypothesis.text == best.hypothesis.text
    assert not choice.guided


async def test_best_of_one_is_nothing_special() -> None:
    plain = await events_of(fake_engine(), replace(ASK, model="plain"))
    same = await events_of(fake_engine(), replace(ASK, model="plain", best_of=1))
    assert texts(plain) == texts(same)


async def test_without_max_tokens_an_answer_may_fill_the_context() -> None:
    large = FakeLargeModel(letters(eos=0), context_length=30)
    request = replace(ASK, model="plain", sampling=SamplingParams())
    [choice] = choices(await events_of(fake_engine(large), request)).values()
    assert len(choice.hypothesis.tokens) == 29
    scorers = {"positive": FakeScorer(room=7)}
    request = replace(request, model="guided")
    [choice] = choices(await events_of(fake_engine(large, scorers), request)).values()
    assert len(choice.hypothesis.tokens) == 7


@pytest.mark.parametrize(("max_tokens", "drawn"), [(29, 29), (None, 29)])
async def test_max_tokens_may_equal_the_room_left_in_the_context(max_tokens: int | None, drawn: int) -> None:
    large = FakeLargeModel(letters(eos=0), context_length=30)
    request = replace(ASK, model="plain", sampling=SamplingParams(max_tokens=max_tokens))
    [choice] = choices(await events_of(fake_engine(large), request)).values()
    assert len(choice.hypothesis.tokens) == drawn


def test_a_served_models_own_defaults_come_before_the_large_models() -> None:
    large = FakeLargeModel()
    large.default_sampling = SamplingParams(temperature=0.6, top_k=20)
    served = {
        "bare": ServedModelConfig("l"),
        "own": ServedModelConfig("l", sampling={"temperature": 0, "stop": ("x",)}),
    }
    engine = Engine({"l": large}, {}, served)
    assert engine.served_models["bare"].sampling == large.default_sampling
    assert engine.served_models["own"].sampling == SamplingParams(temperature=0, top_k=20, stop=("x",))
    engine.reconfigure({"bare": ServedModelConfig("l", sampling={"top_k": 5})}, Limits())
    assert engine.served_models["bare"].sampling == SamplingParams(temperature=0.6, top_k=5)


@pytest.mark.parametrize(("max_tokens", "default", "drawn"), [(None, 9, 9), (None, 99, 29), (12, 9, 12)])
async def test_a_default_of_max_tokens_is_shortened_to_what_fits(
    max_tokens: int | None, default: int, drawn: int
) -> None:
    large = FakeLargeModel(letters(eos=0), context_length=30)
    request = replace(ASK, sampling=SamplingParams(max_tokens=max_tokens), default_max_tokens=default)
    for model in ("plain", "guided"):
        [choice] = choices(await events_of(fake_engine(large), replace(request, model=model))).values()
        assert len(choice.hypothesis.tokens) == drawn


@pytest.mark.parametrize(("max_tokens", "drawn"), [(None, 1), (7, 7)])
async def test_a_prompt_truncated_to_fit_leaves_room_for_the_answer(max_tokens: int | None, drawn: int) -> None:
    large = FakeLargeModel(letters(eos=0), context_length=30)
    sampling = SamplingParams(max_tokens=max_tokens)
    request = replace(ASK, model="plain", prompts=(TextPrompt("x" * 99),), sampling=sampling, truncate_prompt_tokens=-1)
    events = await events_of(fake_engine(large), request)
    last = events[-1]
    assert isinstance(last, RequestFinished)
    assert (last.prompt_tokens, last.completion_tokens) == (30 - drawn, drawn)


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"model": "nobody"}, UnknownModelError, "model"),
        ({"n": 3}, RequestError, "n"),
        ({"n": 3, "best_of": 2}, RequestError, "best_of"),
        ({"n": 2, "best_of": 1}, RequestError, "best_of"),
        ({"guidance": Guidance("cbs", {"rude": 1.0})}, RequestError, "guidance.pairs.rude"),
        ({"guidance": Guidance("cbs")}, RequestError, "guidance.pairs"),
        ({"guidance": replace(DEFAULT_GUIDANCE, beam_width=9, successors=8)}, RequestError, "guidance"),
        ({"guidance": replace(DEFAULT_GUIDANCE, successors=10**6)}, RequestError, "guidance.successors"),
        ({"guidance": replace(DEFAULT_GUIDANCE, beam_width=65)}, RequestError, "guidance.beam_width"),
        (
            {"guidance": replace(DEFAULT_GUIDANCE, method="best_of_n", successors=65)},
            RequestError,
            "guidance.successors",
        ),
        ({"model": "plain", "n": 65}, RequestError, "n"),
        ({"model": "plain", "best_of": 65}, RequestError, "best_of"),
        ({"sampling": SamplingParams(max_tokens=1000)}, ContextLengthError, "prompt"),
        ({"prompts": (TextPrompt("x" * 1000),)}, ContextLengthError, "prompt"),
        ({"prompts": (ChatPrompt(({"role": "user", "content": "x" * 1000},)),)}, ContextLengthError, "messages"),
        ({"prompts": (ChatPrompt(({"role": "tool", "content": "x"},)),)}, RequestError, "messages"),
    ],
)
async def test_what_cannot_be_served_is_refused_naming_the_field(
    change: dict[str, object], error: type[RequestError], param: str
) -> None:
    engine = fake_engine()
    with pytest.raises(error) as caught:
        await events_of(engine, replace(ASK, **change))  # type: ignore[arg-type]
    assert caught.value.param == param
    assert engine.admission.rows_running == 0


async def test_an_answer_ends_where_the_pairs_context_is_full() -> None:
    sampling = replace(ASK.sampling, max_tokens=20, ignore_eos=True)
    engine = fake_engine(scorers={"positive": FakeScorer(room=5)})
    [y] = await answer(engine, replace(ASK, sampling=sampling))
    assert (y.length, y.finish_reason) == (5, "length")


@settings(max_examples=60, deadline=None)
@given(
    ceiling=st.integers(1, 60),
    w=st.integers(1, 3),
    k=st.integers(1, 3),
    length=st.integers(1, 6),
    method=st.sampled_from(["cbs", "best_of_n", "none"]),
    prompts=st.integers(1, 2),
)
def test_no_request_draws_more_than_its_ceiling(
    ceiling: int, w: int, k: int, length: int, method: Any, prompts: int
) -> None:
    guidance = Guidance(method, {"positive": 1.0}, w, k, length, max_sampled_tokens=ceiling)
    rows = {"cbs": w * k, "best_of_n": k, "none": 1}[method]
    request = replace(ASK, prompts=(TextPrompt("x"),) * prompts, guidance=guidance)
    limits = Limits(max_sampled_tokens_per_request=ceiling) if method == "none" else None
    engine = fake_engine(FakeLargeModel(letters(eos=0)), limits=limits)
    if ceiling < rows * prompts:
        with pytest.raises(RequestError, match="not one token"):
            asyncio.run(events_of(engine, request))
        return
    events = asyncio.run(events_of(engine, request))
    answers = [choice.hypothesis for choice in choices(events).values()]
    assert {y.length for y in answers} == {min(12, ceiling // (rows * prompts))}
    assert {y.finish_reason for y in answers} == {"length"}
    last = events[-1]
    assert isinstance(last, RequestFinished)
    assert last.guidance is None or last.guidance.sampled_tokens <= ceiling


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompts": (TextPrompt("x"),) * 21, "model": "plain"}, "prompt"),
        ({"prompts": (TextPrompt("x"),) * 6}, "prompt"),
        ({"n": 21, "model": "plain"}, "n"),
        ({"guidance": replace(DEFAULT_GUIDANCE, beam_width=7, successors=3)}, "guidance"),
        ({"guidance": replace(DEFAULT_GUIDANCE, max_sampled_tokens=3)}, "guidance.max_sampled_tokens"),
    ],
)
async def test_a_ceiling_below_one_token_each_names_the_field_at_fault(change: dict[str, Any], param: str) -> None:
    engine = fake_engine(limits=Limits(max_sampled_tokens_per_request=20))
    with pytest.raises(RequestError, match="not one token for each") as caught:
        await events_of(engine, replace(ASK, **change))
    assert caught.value.param == param


async def test_the_servers_ceiling_bounds_the_requests_own() -> None:
    engine = fake_engine(FakeLargeModel(letters(eos=0)), limits=Limits(max_sampled_tokens_per_request=20))
    events = await events_of(engine, replace(ASK, guidance=replace(DEFAULT_GUIDANCE, max_sampled_tokens=1000)))
    assert choices(events)[0].hypothesis.length == 5
