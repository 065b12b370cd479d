"""EFT through the engine and a real worker: its identities, alone and inside a search, and what it refuses."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM

from tests.fakes import answer
from tests.tiny import save_tiny
from tests.worker.eft import EFT, TUNED, eft_config
from tests.worker.test_engine_on_workers import assert_nothing_is_held, pool_of
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig, PairConfig
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import RequestFinished, TextCommitted
from w2s_core.errors import RequestError
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import (
    ChatPrompt,
    GenerationRequest,
    Grammar,
    Guidance,
    Hypothesis,
    SamplingParams,
    TextPrompt,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = TextPrompt("Once upon a time")
CHAT = ChatPrompt(({"role": "user", "content": "Hi"},))
ASK = GenerationRequest("eft", (PROMPT,), SamplingParams(max_tokens=24, seed=11))
WORDS = Grammar("regex", "(red|green|blue| )+", "guided_regex")


@pytest.fixture(scope="module")
def config(folders: dict[str, Path]) -> EngineConfig:
    return eft_config(folders)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine(config: EngineConfig) -> AsyncIterator[Engine]:
    async with build_engine(config) as built:
        yield built


async def texts(engine: Engine, request: GenerationRequest) -> list[tuple[tuple[int, ...], str | None]]:
    return [(y.tokens, y.finish_reason) for y in await answer(engine, request)]


VARIETY = [
    SamplingParams(max_tokens=24, seed=11),
    SamplingParams(max_tokens=24, temperature=0),
    SamplingParams(max_tokens=24, seed=3, temperature=0.7, top_k=20, top_p=0.9, min_p=0.01),
    SamplingParams(max_tokens=24, seed=4, presence_penalty=0.8, repetition_penalty=1.2, logit_bias=((100, 4.0),)),
    SamplingParams(max_tokens=24, seed=5, stop=("a", "e"), min_tokens=3),
]


@pytest.mark.parametrize("sampling", VARIETY)
async def test_no_weight_is_plain_sampling(engine: Engine, sampling: SamplingParams) -> None:
    request = replace(ASK, sampling=sampling, n=3, guidance=Guidance("eft", {"same": 0.0, "self": 0.0}))
    steered, plain = await answer(engine, request), await answer(engine, replace(request, model="plain", guidance=None))
    assert [y.tokens for y in steered] == [y.tokens for y in plain]
    for one, other in zip(steered, plain, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("prompt", [PROMPT, CHAT])
@pytest.mark.parametrize("sampling", VARIETY)
async def test_a_base_that_is_the_untuned_model_samples_as_the_tuned_one(
    engine: Engine, sampling: SamplingParams, prompt: TextPrompt | ChatPrompt
) -> None:
    request = replace(ASK, sampling=sampling, n=3, prompts=(prompt,), guidance=TUNED)
    steered = await texts(engine, request)
    assert steered == await texts(engine, replace(request, model="tuned", guidance=Guidance("none")))
    assert steered != await texts(engine, replace(request, model="plain", guidance=Guidance("none")))


async def test_a_grammar_holds_and_the_identity_with_it(engine: Engine) -> None:
    request = replace(ASK, sampling=replace(ASK.sampling, grammar=WORDS, temperature=2.0), n=2)
    for y in await answer(engine, request):
        assert set(y.text) <= set("redgreenblue ")
    steered = await texts(engine, replace(request, guidance=TUNED))
    assert steered == await texts(engine, replace(request, model="tuned", guidance=Guidance("none")))


async def test_two_pairs_with_a_negative_weight_equal_a_plain_loop(engine: Engine, folders: dict[str, Path]) -> None:
    guidance = Guidance("eft", {"same": 2.0, "reverse": -1.5})
    sampling = SamplingParams(max_tokens=20, temperature=0)
    [found] = await answer(engine, replace(ASK, sampling=sampling, guidance=guidance))
    tokenizer = HFTokenizer(str(folders["large"]))
    question, asked = (tokenizer.encode(text, special_tokens=True) for text in (PROMPT.text, "Q: " + PROMPT.text))
    terms = [
        ("large", question, 1.0),
        ("tuned", asked, 2.0),
        ("untuned", asked, -2.0),
        ("large", question, -1.5),
        ("untuned", question, 1.5),
    ]
    models = {name: AutoModelForCausalLM.from_pretrained(folders[name]) for name in ("large", "tuned", "untuned")}
    tokens: tuple[int, ...] = ()
    while len(tokens) < 20 and tokenizer.eos not in tokens:
        with torch.no_grad():
            logits = [w * models[name](torch.tensor([prompt + tokens])).logits[0, -1] for name, prompt, w in terms]
        tokens += (int(sum(logits).argmax()),)  # type: ignore[union-attr]
    assert found.tokens + ((found.ending,) if found.ending is not None else ()) == tokens


async def test_a_request_is_answered_the_same_alone_and_among_others_and_leaves_nothing(engine: Engine) -> None:
    requests = [
        replace(ASK, sampling=VARIETY[i], guidance=guidance, n=2)
        for i, guidance in enumerate(
            [EFT, TUNED, Guidance("none"), Guidance("cbs", EFT.pairs, 2, 2, 4, proposal="eft")]
        )
    ]
    alone = [await texts(engine, request) for request in requests]
    assert await asyncio.gather(*(texts(engine, request) for request in requests)) == alone
    await assert_nothing_is_held(engine)


async def test_it_streams_token_by_token(engine: Engine) -> None:
    request = replace(ASK, sampling=replace(VARIETY[2], allowed_token_ids=tuple(range(30, 60))))
    events = [event async for event in engine.generate(request)]
    pieces = [event.text for event in events if isinstance(event, TextCommitted)]
    [whole] = await answer(engine, request)
    assert "".join(pieces) == whole.text
    assert len(pieces) == len(whole.tokens) == 24
    last = events[-1]
    assert isinstance(last, RequestFinished)
    assert last.guidance is not None
    assert (last.guidance.method, last.guidance.sampled_tokens) == ("eft", whole.length)


async def test_an_answer_ends_at_the_pairs_context(folders: dict[str, Path], tmp_path: Path) -> None:
    config = eft_config(folders)
    short = str(save_tiny(tmp_path / "short", seed=1, context_length=30))
    config = replace(config, pairs=config.pairs | {"same": PairConfig(short, str(folders["untuned"]))})
    async with build_engine(config) as engine:
        sampling = SamplingParams(max_tokens=100, seed=1, ignore_eos=True)
        [found] = await answer(engine, replace(ASK, sampling=sampling))
        assert (found.length, found.finish_reason) == (30 - len(PROMPT.text), "length")
        with pytest.raises(RequestError) as refused:
            await answer(engine, replace(ASK, prompts=(TextPrompt("x" * 30),)))
        assert refused.value.param == "prompt"


def candidates(answers: list[Hypothesis]) -> list[tuple[tuple[int, ...], float]]:
    return [(y.tokens, round(y.score, 3)) for y in answers]


@pytest.mark.parametrize(
    "search", [Guidance("cbs", {}, 3, 3, 4), Guidance("best_of_n", {}, successors=5), Guidance("cbs", {}, 1, 1, 5)]
)
async def test_a_search_that_proposes_by_eft_is_one_whose_large_model_is_tuned(
    engine: Engine, search: Guidance
) -> None:
    request = replace(ASK, guidance=replace(search, pairs={"self": 1.0}, proposal="eft"))
    steered = candidates(await answer(engine, request))
    tuned = replace(request, model="tuned", guidance=replace(search, pairs={"self": 1.0}))
    assert steered == candidates(await answer(engine, tuned))
    assert steered != candidates(await answer(engine, replace(tuned, model="plain")))


async def test_best_of_draws_by_eft_where_that_is_the_served_models_method(engine: Engine) -> None:
    guidance = Guidance("best_of_n", EFT.pairs, successors=4, proposal="eft")
    assert await texts(engine, replace(ASK, best_of=4)) == await texts(engine, replace(ASK, guidance=guidance))


async def test_it_survives_its_workers_death(mortal: Engine) -> None:
    search = Guidance("cbs", EFT.pairs, 2, 2, 4, proposal="eft")
    long = replace(ASK, sampling=SamplingParams(max_tokens=100, seed=5, presence_penalty=0.3), n=2)
    requests = [long, replace(long, guidance=TUNED), replace(long, guidance=search)]
    undisturbed = [await texts(mortal, request) for request in requests]
    tasks = [asyncio.create_task(texts(mortal, request)) for request in requests]
    async with aclosing(mortal.generate(long)) as events:
        async for _ in events:  # the worker is in the middle of it
            os.kill(pool_of(mortal).workers[0].pid, signal.SIGKILL)
            break
    assert await asyncio.gather(*tasks) == undisturbed
    await assert_nothing_is_held(mortal)


async def test_pairs_must_run_beside_the_large_model(config: EngineConfig) -> None:
    pairs = {
        "same": replace(config.pairs["same"], devices=("cpu:1",)),
        "self": replace(config.pairs["self"], devices=("cpu:0",)),
    }
    workers = replace(config.workers, devices=("cpu:0", "cpu:1"))
    large = {"large": replace(config.large_models["large"], devices=("cpu:0",))}
    apart = replace(config, pairs=pairs, workers=workers, large_models=large, served_models={})
    apart = replace(apart, served_models={"eft": config.served_models["eft"]})
    async with build_engine(apart) as engine:
        assert (await answer(engine, replace(ASK, guidance=TUNED)))[0].tokens
        with pytest.raises(RequestError, match="device") as refused:
            await answer(engine, ASK)
        assert refused.value.param == "guidance.method"
