"""What a provider has drawn for a request is counted, however the request ends: an API key is charged for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes import answer
from tests.remote.fake_provider import FakeProvider, words
from tests.remote.test_large import ASK, CBS, FLAVORS, serving
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import RequestFinished, TextCommitted
from w2s_core.telemetry.request_record import RequestRecord
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import GenerationRequest, Guidance, SamplingParams

LONG = replace(ASK, sampling=SamplingParams(max_tokens=400, seed=1))
BEST = replace(LONG, guidance=Guidance("best_of_n", {"likes-a": 1.0}, successors=16))
REQUESTS = {
    "plain": replace(LONG, model="plain", n=3),
    "best": BEST,
    "cbs": replace(LONG, guidance=replace(CBS, chunk_length=30)),
}


def blocked_at(number: int) -> tuple[Callable[[], Any], asyncio.Event]:
    """A gate that opens for all before the `number`-th, and an event that is set when that one waits."""
    passed, reached = iter(range(number)), asyncio.Event()

    async def gate() -> None:
        if next(passed, None) is None:
            reached.set()
            await asyncio.Event().wait()

    return gate, reached


async def cancelled(engine: Engine, request: GenerationRequest, reached: asyncio.Event) -> RequestRecord:
    """The record of a request whose client leaves once `reached` is set."""
    record = RequestRecord()

    async def run() -> None:
        async for _ in engine.generate(request, record):
            pass

    running = asyncio.create_task(run())
    await asyncio.wait_for(reached.wait(), 60)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    return record


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("flavor", FLAVORS)
async def test_of_a_streamed_call_what_has_arrived_is_counted(tokenizer: HFTokenizer, flavor: str, kind: str) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, ("a", "b"), eos=0.0), flavor=flavor)
    async with serving(provider) as engine:
        provider.event_gate, reached = blocked_at(200)
        record = await cancelled(engine, REQUESTS[kind], reached)
    unstreamed = [call for call in provider.calls if not call.get("stream")]
    assert len(unstreamed) == (6 if kind == "plain" and flavor == "vllm" else 3 if kind == "plain" else 0)
    drawn = 200 + sum(call["max_tokens"] for call in unstreamed)
    assert drawn - len(provider.calls) <= record.sampled_tokens <= drawn, "an event of usage alone has no token"


@pytest.mark.parametrize("kind", [*REQUESTS, "short"])
@pytest.mark.parametrize("flavor", FLAVORS)
async def test_of_a_call_that_is_not_streamed_all_that_it_asked_for_is_counted(
    tokenizer: HFTokenizer, flavor: str, kind: str
) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, ("a", "b"), eos=0.0), flavor=flavor, streams=kind == "short")
    async with serving(provider) as engine:
        provider.gate, reached = blocked_at(0)
        record = await cancelled(engine, REQUESTS.get(kind, ASK), reached)
    assert record.sampled_tokens == sum(call["n"] * call["max_tokens"] for call in provider.calls) > 0


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 3}, {"prompt_tokens": 3, "completion_tokens": None}])
@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("flavor", FLAVORS)
async def test_where_a_provider_counts_nothing_the_tokens_that_it_lists_are_counted(
    tokenizer: HFTokenizer, flavor: str, streams: bool, usage: Any
) -> None:
    record = RequestRecord()
    provider = FakeProvider(tokenizer, words(tokenizer, eos=0.0), flavor=flavor, streams=streams)
    async with serving(provider) as engine:
        provider.spoil = lambda answer: answer.update(usage=usage)
        events = [event async for event in engine.generate(BEST, record)]
    drawn = sum(call["n"] * call["max_tokens"] for call in provider.calls)
    assert record.sampled_tokens == drawn > 0
    assert isinstance(events[-1], RequestFinished)
    assert events[-1].guidance is not None
    assert events[-1].guidance.upstream is not None
    assert events[-1].guidance.upstream.completion_tokens == drawn


async def test_a_client_that_stops_reading_is_counted_as_well(tokenizer: HFTokenizer) -> None:
    provider, record = FakeProvider(tokenizer, words(tokenizer, ("a", "b"), eos=0.0)), RequestRecord()
    async with serving(provider) as engine:
        events = engine.generate(replace(LONG, model="plain"), record)
        assert isinstance(await anext(events), TextCommitted)
        await events.aclose()
    assert record.sampled_tokens == sum(call["max_tokens"] for call in provider.calls)
    assert provider.open_calls == 0


@pytest.mark.parametrize("kind", [*REQUESTS, "short"])
@pytest.mark.parametrize("flavor", FLAVORS)
async def test_a_streamed_answer_is_the_one_that_is_not(tokenizer: HFTokenizer, flavor: str, kind: str) -> None:
    for seed in range(4):
        found = []
        for streams in (False, True):
            provider = FakeProvider(tokenizer, words(tokenizer, eos=0.02), flavor=flavor, streams=streams)
            provider.spoil = _with_alternatives
            request = REQUESTS.get(kind, ASK)
            sampling = replace(request.sampling, max_tokens=60, seed=seed, logprobs=2, stop=("ab",))
            record = RequestRecord()
            async with serving(provider) as engine:
                found.append(await answer(engine, replace(request, sampling=sampling)))
                async for _ in engine.generate(replace(request, sampling=sampling), record):
                    pass
            found.append(record.sampled_tokens)
        assert found[:2] == found[2:]


def _with_alternatives(answer: dict[str, Any]) -> None:
    for choice in answer["choices"]:
        names = [f"token_id:{token}" for token in choice.get("token_ids", ())] or choice["logprobs"]["tokens"]
        choice["logprobs"]["top_logprobs"] = [{name: -1.0, "token_id:7": -2.0} for name in names]
