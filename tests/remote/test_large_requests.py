"""A remote large model's requests: prompts, what a provider can and cannot do, and what is found at the start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes import answer
from tests.remote import fake_provider
from tests.remote.fake_provider import FakeProvider, events_of, words
from tests.remote.test_large import ASK, CBS, FLAVORS, KEY, remote_model, serving
from w2s_core.config import ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import RequestFinished
from w2s_core.errors import ConfigurationError, ContextLengthError, RequestError, UnavailableError
from w2s_core.large.capabilities import probe_large_model
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import ChatPrompt, SamplingParams, TextPrompt, TokenPrompt


async def test_without_a_tokenizer_the_provider_counts_the_prompt(tokenizer: HFTokenizer) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, eos=0.0), flavor="openai")
    request = replace(ASK, model="plain", prompts=(TextPrompt("é☃"),))
    async with serving(provider, with_tokenizer=False) as engine:
        events = [event async for event in engine.generate(request)]
        assert isinstance(events[-1], RequestFinished)
        assert events[-1].prompt_tokens == 5
        assert events[-1].completion_tokens <= 12
        for prompt, field in (
            (TokenPrompt((1, 2)), "prompt"),
            (ChatPrompt(({"role": "user", "content": "x"},)), "messages"),
        ):
            with pytest.raises(RequestError, match="tokenizer") as refusal:
                await answer(engine, replace(request, prompts=(prompt,)))
            assert refusal.value.param == field


async def test_a_conversation_is_rendered_here(tokenizer: HFTokenizer) -> None:
    chat = ChatPrompt(({"role": "user", "content": "Hi"},))
    for flavor in FLAVORS:
        provider = FakeProvider(tokenizer, flavor=flavor)
        async with serving(provider) as engine:
            await answer(engine, replace(ASK, prompts=(chat,)))
        prompt = provider.calls[0]["prompt"]
        assert (prompt if isinstance(prompt, str) else tokenizer.decode(prompt)) == "<user>Hi\n<assistant>"


@pytest.mark.parametrize(
    ("flavor", "sampling", "field"),
    [
        ("openai", {"top_k": 5}, "top_k"),
        ("openai", {"min_p": 0.1}, "min_p"),
        ("openai", {"min_tokens": 2}, "min_tokens"),
        ("openai", {"presence_penalty": 1.0}, "presence_penalty"),
        ("openai", {"logprobs": 6}, "logprobs"),
        ("vllm", {"presence_penalty": 1.0}, "presence_penalty"),
        ("vllm", {"bad_words": ("two words",)}, "bad_words"),
        ("vllm", {"stop_token_ids": (100000,)}, "stop_token_ids"),
    ],
)
async def test_what_a_provider_cannot_do_is_refused_by_name(
    tokenizer: HFTokenizer, flavor: str, sampling: dict[str, Any], field: str
) -> None:
    async with serving(FakeProvider(tokenizer, flavor=flavor)) as engine:
        with pytest.raises(RequestError) as refusal:
            await answer(engine, replace(ASK, sampling=SamplingParams(max_tokens=5, **sampling)))
    assert refusal.value.param == field


async def test_what_a_provider_can_do_is_asked_of_it(tokenizer: HFTokenizer) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, ("a",), eos=0.0))
    sampling = SamplingParams(
        max_tokens=8,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.1,
        frequency_penalty=0.5,
        logit_bias=((5, 2.0),),
        min_tokens=6,
        ignore_eos=True,
        stop_token_ids=(9,),
        allowed_token_ids=(5, 9, 60, 70),
        bad_words=("z",),
    )
    [a] = tokenizer.encode("a", special_tokens=False)
    async with serving(provider) as engine:
        await answer(engine, replace(ASK, sampling=sampling, guidance=replace(CBS, beam_width=1, successors=1)))
    first, second = provider.calls
    for call in (first, second):
        wanted = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1}
        wanted |= {"ignore_eos": True, "stop_token_ids": [9], "allowed_token_ids": [5, 9, 60, 70], "bad_words": ["z"]}
        assert {key: call[key] for key in wanted} == wanted
        assert not {"stop", "include_stop_str_in_output"} & set(call)
    assert (first["min_tokens"], first["logit_bias"]) == (4, {"5": 2.0})
    assert (second["min_tokens"], second["logit_bias"]) == (2, {"5": 2.0, str(a): -0.5 * 4})


async def test_nothing_is_left_to_the_providers_own_defaults(tokenizer: HFTokenizer) -> None:
    """vLLM takes them from the model's generation_config.json, and ours are OpenAI's: no hidden top_k."""
    provider = FakeProvider(tokenizer)
    async with serving(provider) as engine:
        await answer(engine, ASK)
    wanted = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert all({key: call[key] for key in wanted} == wanted for call in provider.calls)


@pytest.mark.parametrize(
    ("speaks", "flavor", "with_tokenizer", "token_ids"),
    [
        ("vllm", "auto", True, True),
        ("vllm", "auto", False, False),
        ("openai", "auto", True, False),
        ("vllm", "openai", True, False),
        ("vllm", "vllm", True, True),
    ],
)
async def test_what_is_found_at_the_start(
    tokenizer: HFTokenizer, speaks: str, flavor: str, with_tokenizer: bool, token_ids: bool
) -> None:
    part = remote_model(FakeProvider(tokenizer, flavor=speaks), with_tokenizer=with_tokenizer, flavor=flavor)
    await part.start()
    assert (part.capabilities.context_length, part.capabilities.token_ids) == (500, token_ids)
    await part.stop()


def _without(*keys: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """A function that drops these fields of every choice."""
    return lambda events: [
        {**event, "choices": [{k: v for k, v in choice.items() if k not in keys} for choice in event["choices"]]}
        for event in events
    ]


STREAMS: dict[str, tuple[Callable[[list[dict[str, Any]]], list[dict[str, Any]]], bool]] = {
    "as usual": (lambda events: events, True),
    "in one event": (lambda events: [{"choices": [c for e in events[:2] for c in e["choices"]], **events[-1]}], False),
    "each token twice": (lambda events: [*events[:-1], *events[:-1], events[-1]], False),
    "no usage": (lambda events: events[:-1], False),
    "one choice": (lambda events: [event for event in events if not any(c["index"] for c in event["choices"])], False),
    "no finish reasons": (_without("finish_reason"), False),
    "no log-probabilities": (_without("logprobs"), False),
    "no token ids": (_without("token_ids"), False),
    "no choices": (lambda events: [{"usage": None}], False),
}


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("flavor", FLAVORS)
async def test_whether_a_provider_streams_is_found_at_the_start(
    tokenizer: HFTokenizer, kind: str, flavor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, expected = STREAMS[kind]
    provider = FakeProvider(tokenizer, words(tokenizer, ("a", "b"), eos=0.0), flavor=flavor)
    monkeypatch.setattr(fake_provider, "events_of", lambda answer: change(events_of(answer)))
    part = remote_model(provider)
    await part.start()
    assert part.capabilities.streams is (expected or (kind == "no token ids" and flavor == "openai"))
    assert part.capabilities.token_ids == (flavor == "vllm")
    await part.stop()


async def test_what_cannot_be_served_names_the_key(tokenizer: HFTokenizer) -> None:
    silent = remote_model(FakeProvider(tokenizer, lists_context=False))
    with pytest.raises(ConfigurationError, match=f"{KEY}.context_length: set it"):
        await silent.start()
    told = remote_model(FakeProvider(tokenizer, lists_context=False), context_length=77)
    await told.start()
    assert told.capabilities.context_length == 77
    with pytest.raises(ConfigurationError, match=f"{KEY}.flavor"):
        await remote_model(FakeProvider(tokenizer, flavor="openai"), flavor="vllm").start()
    other = FakeProvider(tokenizer)
    other.spoil = lambda answer: answer["choices"][0].update(prompt_token_ids=[1, 2, 3])
    with pytest.raises(ConfigurationError, match=f"{KEY}.tokenizer"):
        await remote_model(other).start()
    assert not other.running
    await told.stop()


@pytest.mark.parametrize(
    ("fault", "key"),
    [({"lists_context": False}, "max_model_len"), ({"flavor": "openai"}, "command"), ({}, "extra_args")],
)
async def test_a_managed_vllm_has_keys_of_its_own(tokenizer: HFTokenizer, fault: dict[str, Any], key: str) -> None:
    provider = FakeProvider(tokenizer, **fault)
    if key == "extra_args":
        provider.spoil = lambda answer: answer["choices"][0].update(prompt_token_ids=[1, 2, 3])
    config = replace(provider.config, flavor="vllm", tokenizer="own")
    with pytest.raises(ConfigurationError, match=rf"^{KEY}\.{key}: "):
        await probe_large_model(provider, config, tokenizer, KEY, managed=True)  # type: ignore[arg-type]


async def test_a_provider_that_is_down_is_waited_for(tokenizer: HFTokenizer) -> None:
    provider = FakeProvider(tokenizer)
    provider.down = True
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def sleep(_: float) -> None:
        asked.set()
        await go_on.wait()
        go_on.clear()

    part = remote_model(provider)
    part._sleep = sleep
    engine = Engine({"far": part.model}, {}, {"plain": ServedModelConfig("far")}, components=[part])  # type: ignore[attr-defined]
    async with engine:
        assert not engine.ready
        assert engine.served_models["plain"].context_length is None
        with pytest.raises(UnavailableError) as refusal:
            await answer(engine, replace(ASK, model="plain"))
        assert refusal.value.retry_after_s > 0
        await asked.wait()
        asked.clear()
        go_on.set()  # still down
        await asked.wait()
        assert not engine.ready
        provider.down = False
        go_on.set()
        assert part._retrying is not None
        await part._retrying
        assert engine.ready
        assert engine.served_models["plain"].context_length == 500
        await answer(engine, replace(ASK, model="plain"))
    assert not provider.running


async def test_the_context_is_checked_before_anything_is_bought(tokenizer: HFTokenizer) -> None:
    provider = FakeProvider(tokenizer)
    async with serving(provider) as engine:
        with pytest.raises(ContextLengthError, match="maximum context length is 500"):
            await answer(engine, replace(ASK, prompts=(TextPrompt("x" * 495),)))
    assert not provider.calls
