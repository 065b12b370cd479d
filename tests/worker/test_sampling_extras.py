"""Penalties, biases, masks and stop tokens, from HTTP through a worker process with tiny models and back."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.fakes import answer
from tests.tiny import BOS, EOS
from tests.worker.test_engine_on_workers import assert_nothing_is_held, kill_in_the_middle
from w2s_core.engine.engine import Engine
from w2s_core.errors import RequestError
from w2s_core.types import GenerationRequest, Guidance, SamplingParams, TextPrompt

pytestmark = pytest.mark.asyncio(loop_scope="session")

EVERYTHING = SamplingParams(
    max_tokens=24,
    temperature=0.9,
    top_p=0.95,
    top_k=200,
    stop=("~~",),
    seed=11,
    min_p=0.001,
    presence_penalty=0.5,
    frequency_penalty=0.7,
    repetition_penalty=1.2,
    logit_bias=((65, 3.0), (70, -5.0)),
    min_tokens=6,
    ignore_eos=True,
    stop_token_ids=(33, 34),
    allowed_token_ids=tuple(range(20, 258)),
    bad_words=("AB", "q"),
    include_stop_str_in_output=True,
    skip_special_tokens=False,
)
ASK = GenerationRequest("guided", (TextPrompt("Once upon a time"),), EVERYTHING)
BODY: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 24, "seed": 3}


async def choice(client: httpx.AsyncClient, model: str, **body: Any) -> dict[str, Any]:
    """The only choice and the usage, after checking that the stream says the same."""
    whole = await client.post("/v1/completions", json={**BODY, "model": model, **body})
    assert whole.status_code == 200, whole.text
    streamed = await client.post("/v1/completions", json={**BODY, "model": model, "stream": True, **body})
    frames = [json.loads(frame.removeprefix("data: ")) for frame in streamed.text.split("\n\n")[:-2]]
    [found] = whole.json()["choices"]
    assert "".join(c["text"] for frame in frames for c in frame["choices"]) == found["text"]
    assert frames[-1]["choices"][0]["finish_reason"] == found["finish_reason"]
    return {**found, "usage": whole.json()["usage"]}


async def test_one_beam_one_successor_is_plain_sampling_with_everything_on(engine: Engine) -> None:
    for seed in range(3):
        sampling = replace(EVERYTHING, seed=seed)
        [plain] = await answer(engine, replace(ASK, model="plain", sampling=sampling))
        for length in (1, 5, 100):
            guidance = Guidance("cbs", {"same": 1.0}, 1, 1, length)
            [guided] = await answer(engine, replace(ASK, guidance=guidance, sampling=sampling))
            assert guided.tokens == plain.tokens
            assert (guided.text, guided.finish_reason, guided.ended) == (plain.text, plain.finish_reason, plain.ended)
            assert guided.logprobs == pytest.approx(plain.logprobs, abs=1e-4)
        assert plain.length >= 6
        assert "AB" not in plain.text


async def test_best_of_by_likelihood_is_the_best_sample_with_everything_on(engine: Engine) -> None:
    samples = await answer(engine, replace(ASK, model="plain", n=6))
    [best] = await answer(engine, replace(ASK, model="plain", best_of=6))
    likeliest = max(samples, key=lambda y: sum(y.logprobs) / y.length)
    assert best.tokens == likeliest.tokens
    assert len({y.tokens for y in samples}) > 1


async def test_reported_probabilities_are_the_raw_models(engine: Engine) -> None:
    """An answer forced to an unlikely token is reported as unlikely, not as log 1 = 0."""
    forced = SamplingParams(max_tokens=3, allowed_token_ids=(66,), seed=1)
    [found] = await answer(engine, replace(ASK, model="plain", sampling=forced))
    assert found.tokens == (66, 66, 66)
    assert all(nats < -0.1 for nats in found.logprobs)


async def test_the_same_alone_and_among_others(engine: Engine) -> None:
    plain = replace(ASK, model="plain", sampling=SamplingParams(max_tokens=24, seed=5), n=3)
    kinds = [ASK, replace(ASK, model="plain", n=3), plain, replace(plain, model="guided", n=1)]
    kinds.append(replace(plain, sampling=replace(plain.sampling, min_p=0.1, frequency_penalty=1.0)))
    alone = [await answer(engine, request) for request in kinds]
    others = [replace(ASK, sampling=replace(EVERYTHING, seed=seed)) for seed in range(4)]
    together = await asyncio.gather(*(answer(engine, request) for request in kinds + others))
    for before, after in zip(alone, together, strict=False):
        assert [y.text for y in before] == [y.text for y in after]
    await assert_nothing_is_held(engine)


async def test_penalties_outlive_the_worker(mortal: Engine) -> None:
    sampling = replace(EVERYTHING, max_tokens=120, stop_token_ids=(), frequency_penalty=0.2)
    await kill_in_the_middle(mortal, sampling)


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_penalties_and_biases(client: httpx.AsyncClient, model: str) -> None:
    plain = await choice(client, model, temperature=0.3)
    for extra in (
        {"presence_penalty": 2},
        {"frequency_penalty": 2},
        {"repetition_penalty": 2},
        {"min_p": 0.9},
        {"logit_bias": {"65": 100}},
    ):
        changed = await choice(client, model, temperature=0.3, **extra)
        assert changed["text"] != plain["text"], extra
    assert set(changed["text"]) == {chr(33 + 65)}, "a bias of 100 leaves one token"


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_a_frequency_penalty_ends_repetition(client: httpx.AsyncClient, model: str) -> None:
    biased = {"logit_bias": {"65": 20, "66": 20, "67": 20}, "ignore_eos": True}
    assert len(set((await choice(client, model, **biased, frequency_penalty=-2))["text"])) <= 3
    often = (await choice(client, model, **biased, frequency_penalty=2, max_tokens=60))["text"]
    assert len(set(often)) > 3


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_allowed_and_bad_words(client: httpx.AsyncClient, model: str) -> None:
    allowed = [64, 65, 66]
    text = (await choice(client, model, allowed_token_ids=allowed, max_tokens=60))["text"]
    assert set(text) == {"a", "b", "c"}
    assert "ac" in text
    text = (await choice(client, model, allowed_token_ids=allowed, max_tokens=60, bad_words=["ac", "b"]))["text"]
    assert set(text) <= {"a", "c"}
    assert "ac" not in text


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_what_ends_an_answer(client: httpx.AsyncClient, model: str) -> None:
    """Tokens are bytes: 65 is `b`. EOS and the stop token count in the usage, and do not show unless asked to."""
    some = {"allowed_token_ids": [64, 65, EOS], "logit_bias": {str(EOS): 5}, "max_tokens": 40}
    short = await choice(client, model, **some)
    assert (short["finish_reason"], "<eos>" in short["text"]) == ("stop", False)
    assert short["usage"]["completion_tokens"] == len(short["text"]) + 1

    shown = await choice(client, model, **some, include_stop_str_in_output=True, skip_special_tokens=False)
    assert shown["text"].endswith("<eos>")
    assert shown["text"].count("<eos>") == 1

    long = await choice(client, model, **some, min_tokens=30)
    assert long["usage"]["completion_tokens"] > 30
    assert len(long["text"]) >= 30

    on = await choice(client, model, **some, ignore_eos=True, skip_special_tokens=False)
    assert on["finish_reason"] == "length"
    assert "<eos>" in on["text"]
    assert on["usage"]["completion_tokens"] == 40
    hidden = await choice(client, "plain", **some, ignore_eos=True)
    assert set(hidden["text"]) <= {"a", "b"}
    assert hidden["usage"]["completion_tokens"] == 40

    letters = {"allowed_token_ids": [64, 65], "stop_token_ids": [65], "max_tokens": 40}
    stopped = await choice(client, model, **letters)
    assert (stopped["finish_reason"], set(stopped["text"]) <= {"a"}) == ("stop", True)
    assert stopped["usage"]["completion_tokens"] == len(stopped["text"]) + 1
    with_it = await choice(client, model, **letters, include_stop_str_in_output=True)
    assert with_it["text"].endswith("b")
    late = await choice(client, model, **letters, min_tokens=20)
    assert late["text"].startswith("a" * 20)
    assert (await choice(client, model, **letters, ignore_eos=True))["text"] == stopped["text"]


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_stop_strings_shown_and_not_before_their_time(client: httpx.AsyncClient, model: str) -> None:
    letters = {"allowed_token_ids": [64, 65, 66], "stop": "ac", "max_tokens": 60}
    cut = await choice(client, model, **letters)
    assert (cut["finish_reason"], "ac" in cut["text"]) == ("stop", False)
    shown = await choice(client, model, **letters, include_stop_str_in_output=True)
    assert shown["text"].endswith("ac")
    assert shown["text"].count("ac") == 1
    assert shown["usage"]["completion_tokens"] == len(shown["text"])
    late = await choice(client, model, **letters, min_tokens=30, include_stop_str_in_output=True)
    assert len(late["text"]) > 30
    assert late["text"].endswith("ac")
    assert "ac" in late["text"][:30]


async def test_prompts_as_asked(client: httpx.AsyncClient) -> None:
    """The tiny tokenizer adds nothing of its own, so only what is cut shows in the usage."""
    whole = await choice(client, "plain")
    assert whole["usage"]["prompt_tokens"] == len(BODY["prompt"])
    last = await choice(client, "plain", prompt=" a time")
    for model in ("plain", "guided"):
        cut = await choice(client, model, truncate_prompt_tokens=7)
        assert cut["usage"]["prompt_tokens"] == 7
        assert cut["text"] == (await choice(client, model, prompt=" a time"))["text"]
    assert (await choice(client, "plain", truncate_prompt_tokens=400))["text"] == whole["text"] != last["text"]
    fitting = await choice(client, "plain", prompt=[64] * 600, truncate_prompt_tokens=-1, max_tokens=12)
    assert fitting["usage"]["prompt_tokens"] == 500


@pytest.mark.parametrize("model", ["plain", "guided"])
@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"logit_bias": {"300": 1}}, "logit_bias"),
        ({"stop_token_ids": [300]}, "stop_token_ids"),
        ({"allowed_token_ids": [5, 300]}, "allowed_token_ids"),
        ({"min_tokens": 25}, "min_tokens"),
        ({"truncate_prompt_tokens": 513}, "truncate_prompt_tokens"),
        ({"allowed_token_ids": [EOS], "min_tokens": 1}, "allowed_token_ids"),
        ({"allowed_token_ids": [64, 65], "bad_words": ["a", "cb"]}, "allowed_token_ids"),
        ({"stop_token_ids": list(range(300)), "min_tokens": 1}, "stop_token_ids"),
    ],
)
async def test_what_this_model_cannot_do(
    client: httpx.AsyncClient, model: str, extra: dict[str, Any], param: str
) -> None:
    response = await client.post("/v1/completions", json={**BODY, "model": model, **extra})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


async def test_special_tokens_around_a_conversation(client: httpx.AsyncClient) -> None:
    body = {"model": "plain", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "seed": 1}
    counts = []
    for extra in ({}, {"add_special_tokens": True}, {"truncate_prompt_tokens": 4}):
        response = await client.post("/v1/chat/completions", json={**body, **extra})
        assert response.status_code == 200, response.text
        counts.append(response.json()["usage"]["prompt_tokens"])
    assert counts[2] == 4
    assert counts[0] == counts[1] > 4, "the tiny tokenizer has none to add"


async def test_a_library_caller_is_checked_too(engine: Engine) -> None:
    with pytest.raises(RequestError) as caught:
        await answer(engine, replace(ASK, sampling=replace(EVERYTHING, logit_bias=((-1, 1.0),))))
    assert caught.value.param == "logit_bias"
    assert BOS < EOS
