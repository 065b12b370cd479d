"""A remote large model on a provider with a known distribution: the search over it, usage, and clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_engine import choices
from tests.engine.test_round_events import both, check_ends_in_the_answers, check_is_the_tree, last_of, rounds_of
from tests.fakes import FakeScorer, answer
from tests.remote.fake_provider import FakeProvider, words
from w2s_core.config import Limits, ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import RequestFinished, TextCommitted
from w2s_core.large.capabilities import probe_large_model
from w2s_core.large.remote import RemoteLargeModel
from w2s_core.remote.capability_probe import CapabilityProbe
from w2s_core.search.randomness import call_seed, copy_key, root_key, successor_key
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import GenerationRequest, Guidance, SamplingParams, TextPrompt, Tokens

KEY = "large_models.far"
FLAVORS = ("vllm", "openai")
CBS = Guidance("cbs", {"likes-a": 1.0}, beam_width=2, successors=3, chunk_length=4)
ASK = GenerationRequest("guided", (TextPrompt("Say"),), SamplingParams(max_tokens=12, seed=1))


def remote_model(provider: FakeProvider, *, with_tokenizer: bool = True, **config: Any) -> CapabilityProbe[Any]:
    """`.model` is the large model on it."""
    tokenizer = provider.tokenizer if with_tokenizer else None
    settings = replace(provider.config, **config)
    probe: CapabilityProbe[Any] = CapabilityProbe(
        provider, partial(probe_large_model, provider, settings, tokenizer, KEY)
    )  # type: ignore[arg-type]
    probe.model = RemoteLargeModel(provider, tokenizer, probe)  # type: ignore[attr-defined, arg-type]
    return probe


@asynccontextmanager
async def serving(provider: FakeProvider, limits: Limits | None = None, **config: Any) -> AsyncIterator[Engine]:
    part = remote_model(provider, **config)
    scorers = {"likes-a": FakeScorer()}
    served = {"plain": ServedModelConfig("far"), "guided": ServedModelConfig("far", CBS)}
    large_models = {"far": part.model}  # type: ignore[attr-defined]
    async with Engine(large_models, scorers, served, limits=limits, components=[part]) as engine:
        provider.calls.clear()
        yield engine


def searched(
    provider: FakeProvider, prompt: Tokens, seed: int, guidance: Guidance, budget: int
) -> list[tuple[Any, ...]]:
    """The search, written anew: no engine, no wires; hypotheses are (tokens, ended, key), best first."""
    decode = provider.tokenizer.decode
    score = FakeScorer().nats
    beam = [((), False, copy_key(root_key(seed), i)) for i in range(guidance.beam_width)]
    while budget > 0 and not all(ended for _, ended, _ in beam):
        pool = [y for y in beam if y[1]]
        new: list[tuple[Any, ...]] = []
        for tokens, ended, key in beam:
            if ended:
                continue
            for i in range(guidance.successors):
                drawn, _ = provider.draw(
                    prompt + tokens,
                    seed=call_seed(key, len(tokens)) + i,
                    length=min(guidance.chunk_length, budget),
                )
                ends = drawn[-1:] == (provider.tokenizer.eos,)
                y = (tokens + (drawn[:-1] if ends else drawn), ends, successor_key(key, len(tokens), i))
                if y[:2] not in [other[:2] for other in new]:
                    new.append(y)
        beam = sorted(pool + new, key=lambda y: -score(decode(y[0]), y[1]))[: guidance.beam_width]
        budget -= guidance.chunk_length
    return beam


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**62),
    w=st.integers(1, 3),
    k=st.integers(1, 4),
    length=st.integers(1, 7),
    flavor=st.sampled_from(FLAVORS),
)
def test_the_search_over_a_provider_is_the_search(
    tokenizer: HFTokenizer, seed: int, w: int, k: int, length: int, flavor: str
) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, ("a", "b", " ")), flavor=flavor)
    guidance = replace(CBS, beam_width=w, successors=k, chunk_length=length)
    request = replace(ASK, guidance=guidance, sampling=SamplingParams(max_tokens=12, seed=seed), n=w)

    async def run() -> list[Any]:
        async with serving(provider) as engine:
            return await answer(engine, request)

    found = asyncio.run(run())
    expected = searched(provider, tokenizer.encode("Say", special_tokens=True), seed, guidance, 12)
    assert [(y.text, y.ended) for y in found[: len(expected)]] == [(tokenizer.decode(y[0]), y[1]) for y in expected]
    assert [y.length for y in found[: len(expected)]] == [len(y[0]) + y[1] for y in expected]
    if flavor == "vllm":
        assert [y.tokens for y in found[: len(expected)]] == [y[0] for y in expected]


@pytest.mark.parametrize("with_tokenizer", [True, False])
@pytest.mark.parametrize("flavor", FLAVORS)
async def test_the_rounds_of_a_search_are_its_tree(tokenizer: HFTokenizer, flavor: str, with_tokenizer: bool) -> None:
    """Pieces of characters come and go at the ends of the texts."""
    provider = FakeProvider(tokenizer, words(tokenizer, ("☃", "é", "a", "𝄞"), eos=0.02), flavor=flavor)
    part = remote_model(provider, with_tokenizer=with_tokenizer)
    served = {"guided": ServedModelConfig("far", CBS)}
    request = replace(ASK, guidance=replace(CBS, chunk_length=2), sampling=SamplingParams(max_tokens=24, seed=3))
    async with Engine({"far": part.model}, {"likes-a": FakeScorer()}, served, components=[part]) as engine:  # type: ignore[attr-defined]
        events, whole = await both(engine, request)
    report, rounds = last_of(whole).guidance, rounds_of(events)
    assert report is not None
    assert report.tree is not None
    texts = check_is_the_tree(rounds, report.tree[0])
    check_ends_in_the_answers(rounds, texts, {0: choices(events)[0].hypothesis.text})


@pytest.mark.parametrize("with_tokenizer", [True, False])
@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("seed", range(6))
async def test_characters_stay_whole(tokenizer: HFTokenizer, flavor: str, seed: int, with_tokenizer: bool) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, ("☃", "é", "a", "𝄞"), eos=0.02), flavor=flavor)
    scorer = FakeScorer()
    part = remote_model(provider, with_tokenizer=with_tokenizer)
    engine = Engine(
        {"far": part.model}, {"likes-a": scorer}, {"guided": ServedModelConfig("far", CBS)}, components=[part]
    )  # type: ignore[attr-defined]
    for length in (1, 2, 5):
        guidance = replace(CBS, chunk_length=length)
        async with engine:
            [y] = await answer(
                engine, replace(ASK, guidance=guidance, sampling=SamplingParams(max_tokens=30, seed=seed))
            )
        assert "\ufffd" not in y.text
        assert set(y.text) <= set("☃éa𝄞")
        assert len(y.text) > 3 or y.ended
        assert y.length <= 30
    assert not any("\ufffd" in candidate.text for call in scorer.seen for candidate in call)


@pytest.mark.parametrize("flavor", FLAVORS)
async def test_greedy_is_the_likeliest_however_it_is_cut(tokenizer: HFTokenizer, flavor: str) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, eos=0.0), flavor=flavor)
    expected, _ = provider.draw(tokenizer.encode("Say", special_tokens=True), seed=0, length=40, greedy=True)
    sampling = SamplingParams(max_tokens=40, temperature=0)
    async with serving(provider) as engine:
        [plain] = await answer(engine, replace(ASK, model="plain", sampling=sampling))
        assert len(provider.calls) > 2  # it comes piece by piece
        [guided] = await answer(engine, replace(ASK, sampling=sampling))
    assert plain.text == tokenizer.decode(expected).rstrip("\ufffd")
    assert guided.text == plain.text
    assert guided.length == plain.length == 40
    assert {call["n"] for call in provider.calls} == {1}  # vLLM refuses more


async def test_what_was_bought_is_told(tokenizer: HFTokenizer) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, ("a", "b"), eos=0.0))
    async with serving(provider) as engine:
        events = [event async for event in engine.generate(ASK)]
    last = events[-1]
    assert isinstance(last, RequestFinished)
    assert last.guidance is not None
    assert last.guidance.upstream is not None
    assert last.guidance.upstream.calls == len(provider.calls) == 3 * 2
    assert last.guidance.upstream.completion_tokens == last.guidance.sampled_tokens == 12 * 6
    assert last.guidance.upstream.prompt_tokens == 2 * (3 + 7 + 11)
    assert last.prompt_tokens == 3


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_who_leaves_ends_the_calls(tokenizer: HFTokenizer, model: str) -> None:
    provider = FakeProvider(tokenizer)
    async with serving(provider) as engine:
        reached = asyncio.Event()

        async def gate() -> None:
            reached.set()
            await asyncio.Event().wait()

        provider.gate = gate
        asking = asyncio.create_task(answer(engine, replace(ASK, model=model)))
        await reached.wait()
        assert provider.open_calls > 0
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert provider.open_calls == 0
        assert engine.admission.rows_running == 0


async def test_a_plain_answer_comes_as_it_is_drawn(tokenizer: HFTokenizer) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, ("a", "b"), eos=0.0))
    async with serving(provider) as engine:
        events = [event async for event in engine.generate(replace(ASK, model="plain"))]
    assert len([event for event in events if isinstance(event, TextCommitted)]) > 1


@pytest.mark.parametrize("flavor", FLAVORS)
async def test_likely_alternatives_are_told(tokenizer: HFTokenizer, flavor: str) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, ("a", "b"), eos=0.0), flavor=flavor)
    [a, b] = tokenizer.encode("ab", special_tokens=False)
    names = {"vllm": (f"token_id:{a}", f"token_id:{b}"), "openai": ("a", "b")}[flavor]

    def spoil(answer: dict[str, Any]) -> None:
        for choice in answer["choices"]:
            told = choice["logprobs"]
            told["top_logprobs"] = [{names[1]: -0.9, names[0]: -0.5} for _ in told["tokens"]]

    provider.spoil = spoil
    async with serving(provider) as engine:
        [y] = await answer(engine, replace(ASK, sampling=SamplingParams(max_tokens=6, seed=1, logprobs=2)))
        [model] = engine._planner.large_models.values()
        best = [[(model.decoder.token_text(token).text, nats) for token, nats in place] for place in y.alternatives]
    assert best == [[("a", -0.5), ("b", -0.9)]] * 6
