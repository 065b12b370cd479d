"""The engine with a real worker process and tiny random models: the search's identities, batching, faults."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.test_engine import choices
from tests.engine.test_round_events import both, check_ends_in_the_answers, last_of, rounds_of, texts_of
from tests.fakes import answer
from tests.tiny import EOS
from tests.vnni import vnni
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import ChoiceFinished, RequestFinished, TextCommitted
from w2s_core.pool.pool import WorkerPool
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import ChatPrompt, GenerationRequest, Guidance, SamplingParams, TextPrompt

__all__ = ["vnni"]  # a fixture
pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = TextPrompt("Once upon a time")
ASK = GenerationRequest("guided", (PROMPT,), SamplingParams(max_tokens=24, seed=11))
FOREIGN = Guidance("cbs", {"foreign": 1.0}, beam_width=3, successors=3, chunk_length=4)


def pool_of(engine: Engine) -> WorkerPool:
    assert isinstance(engine._worker_pool, WorkerPool)
    return engine._worker_pool


async def assert_nothing_is_held(engine: Engine) -> None:
    assert (engine.admission.rows_running, engine.admission.rows_waiting) == (0, 0)
    for state in await pool_of(engine).inspect():
        assert set(state.slots_used.values()) == {0}
        assert state.jobs == 0


def logprob(folder: Path, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> float:
    """log p(tokens | prompt) by transformers alone, from scratch."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(tokens))


async def test_one_beam_one_successor_is_plain_sampling(engine: Engine) -> None:
    for length in (1, 5, 100):
        guidance = Guidance("cbs", {"same": 1.0}, 1, 1, length)
        [guided] = await answer(engine, replace(ASK, guidance=guidance))
        [plain] = await answer(engine, replace(ASK, model="plain"))
        assert guided.tokens == plain.tokens
        assert guided.logprobs == pytest.approx(plain.logprobs, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
async def test_the_rounds_that_are_streamed_are_the_tree(engine: Engine, seed: int) -> None:
    """Tokens of half characters make texts that end with less than their parents'. Answers end early."""
    sampling = SamplingParams(max_tokens=24, seed=seed, logit_bias=((EOS, 4.0),), stop=("e",))
    events, whole = await both(engine, replace(ASK, guidance=FOREIGN, sampling=sampling, n=2))
    report, rounds = last_of(whole).guidance, rounds_of(events)
    assert report is not None
    assert report.tree is not None
    rebuilt = texts_of(rounds)
    for texts, chunk in zip(rebuilt, report.tree[0], strict=True):
        assert texts[: len(chunk)] == [known.text for known in chunk]
    check_ends_in_the_answers(rounds, rebuilt, {i: choice.hypothesis.text for i, choice in choices(events).items()})


async def test_one_beam_whole_answers_is_best_of_n(engine: Engine) -> None:
    pairs = {"same": 1.0}
    [wide] = await answer(engine, replace(ASK, guidance=Guidance("cbs", pairs, 1, 6, 24)))
    [named] = await answer(engine, replace(ASK, guidance=Guidance("best_of_n", pairs, successors=6)))
    [openai] = await answer(engine, replace(ASK, best_of=6))
    samples = await answer(engine, replace(ASK, model="plain", n=6))
    scored = await answer(engine, replace(ASK, guidance=Guidance("best_of_n", pairs, successors=6), n=6))
    assert {y.tokens for y in scored} == {y.tokens for y in samples}
    assert wide.tokens == named.tokens == openai.tokens == scored[0].tokens
    assert [y.score for y in scored] == sorted((y.score for y in scored), reverse=True)


@pytest.mark.parametrize("seed", range(4))
async def test_scores_are_those_of_whole_answers_from_scratch(
    engine: Engine, folders: dict[str, Path], seed: int
) -> None:
    request = replace(ASK, sampling=SamplingParams(max_tokens=40, seed=seed))
    [same] = await answer(engine, request)
    tokenizer = HFTokenizer(str(folders["tuned"]))
    prompt = tokenizer.encode(PROMPT.text, special_tokens=True)
    tokens = same.tokens + ((tokenizer.eos,) if same.ended and tokenizer.eos is not None else ())
    expected = logprob(folders["tuned"], prompt, tokens) - logprob(folders["untuned"], prompt, tokens)
    assert same.score == pytest.approx(expected, abs=1e-4)

    [foreign] = await answer(engine, replace(request, guidance=FOREIGN))
    tokenizer = HFTokenizer(str(folders["foreign-tuned"]))
    prompt = tokenizer.encode("Q: " + PROMPT.text, special_tokens=True)
    tokens = tokenizer.encode(foreign.text, special_tokens=False)
    tokens += (tokenizer.eos,) if foreign.ended and tokenizer.eos is not None else ()
    expected = logprob(folders["foreign-tuned"], prompt, tokens) - logprob(folders["foreign-untuned"], prompt, tokens)
    assert foreign.scores["foreign"] == pytest.approx(expected, abs=1e-4)


async def test_sampled_tokens_include_the_eos_of_each_answer(engine: Engine) -> None:
    sampling = SamplingParams(max_tokens=24, seed=11, logit_bias=((EOS, 2.0),))
    guidance = Guidance("best_of_n", {"same": 1.0}, successors=6)
    request = replace(ASK, sampling=sampling, guidance=guidance, n=6)
    events = [event async for event in engine.generate(request)]
    answers = [event.hypothesis for event in events if isinstance(event, ChoiceFinished)]
    assert {y.ended for y in answers} == {True, False}
    assert len({y.tokens for y in answers}) == 6, "none was merged"
    last = events[-1]
    assert isinstance(last, RequestFinished)
    assert last.guidance is not None
    assert last.guidance.sampled_tokens == sum(y.length for y in answers)


async def test_the_prompts_tokens_that_were_cached_are_told(engine: Engine) -> None:
    system = "".join(chr(ord("a") + i % 26) for i in range(100))
    for question, cached in ((" first", 0), (" second", len(system) + 1), (" second", len(system) + 6)):
        for model in ("plain", "guided"):
            request = replace(ASK, model=model, prompts=(TextPrompt(model + system + question),))
            *_, last = [event async for event in engine.generate(request)]
            assert isinstance(last, RequestFinished)
            assert last.cached_tokens == (cached and cached + len(model))


async def test_a_request_is_answered_the_same_alone_and_among_others(engine: Engine) -> None:
    kinds = [
        ASK,
        replace(ASK, guidance=FOREIGN),
        replace(ASK, model="plain", n=3),
        replace(
            ASK, model="plain", sampling=SamplingParams(max_tokens=30, temperature=0.7, top_k=20, top_p=0.9, seed=3)
        ),
        replace(ASK, best_of=5),
    ]
    alone = [await answer(engine, request) for request in kinds]
    others = [
        replace(ASK, model=model, prompts=(TextPrompt("x" * size),), sampling=SamplingParams(max_tokens=33, seed=size))
        for size, model in enumerate(["plain", "guided"] * 4, start=1)
    ]
    together = await asyncio.gather(*(answer(engine, request) for request in kinds + others))
    for before, after in zip(alone, together, strict=False):
        assert [y.text for y in before] == [y.text for y in after]
    await assert_nothing_is_held(engine)


@pytest.mark.usefixtures("vnni")
async def test_an_int8_answer_is_the_same_to_the_last_bit_alone_and_among_31_others(config: EngineConfig) -> None:
    """A token's log-probability tells more than the token: that of other rounding is another one."""
    workers = replace(config.workers, quantization="int8")
    kinds = [replace(ASK, model="plain"), replace(ASK, guidance=FOREIGN), replace(ASK, n=2)]
    others = [
        replace(
            ASK, model="plain", prompts=(TextPrompt("x" * size),), sampling=SamplingParams(max_tokens=33, seed=size)
        )
        for size in range(1, 30)
    ]
    async with build_engine(replace(config, workers=workers)) as engine:
        alone = [await answer(engine, request) for request in kinds]
        together = await asyncio.gather(*(answer(engine, request) for request in kinds + others))
    for before, after in zip(alone, together, strict=False):
        assert [y.tokens for y in before] == [y.tokens for y in after]
        assert [y.logprobs for y in before] == [y.logprobs for y in after]


async def test_greedy_is_transformers_greedy(engine: Engine, folders: dict[str, Path]) -> None:
    tokenizer = HFTokenizer(str(folders["large"]))
    prompt = tokenizer.encode(PROMPT.text, special_tokens=True)
    model = AutoModelForCausalLM.from_pretrained(folders["large"])
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=257)[0]
    request = replace(ASK, model="plain", sampling=SamplingParams(max_tokens=20, temperature=0))
    [found] = await answer(engine, request)
    assert list(found.tokens) == [t for t in expected[len(prompt) :].tolist() if t != 257]


async def test_a_chat_goes_through_each_models_own_template(engine: Engine) -> None:
    chat = ChatPrompt(({"role": "user", "content": "Hi"},))
    [found] = await answer(engine, replace(ASK, prompts=(chat,), guidance=replace(FOREIGN, pairs={"same": 1.0})))
    assert found.length > 0


async def test_a_client_that_leaves_frees_its_rows(engine: Engine) -> None:
    for model in ("plain", "guided"):
        request = replace(ASK, model=model, sampling=SamplingParams(max_tokens=400, seed=1))
        async with aclosing(engine.generate(request)) as events:
            async for event in events:
                assert isinstance(event, TextCommitted)
                break
        await assert_nothing_is_held(engine)


async def test_a_worker_that_hangs_is_replaced_and_its_searches_go_on(config: EngineConfig) -> None:
    workers = replace(config.workers, heartbeat_timeout_s=1.0)
    async with build_engine(replace(config, workers=workers)) as engine:
        expected = await answer(engine, ASK)
        first = pool_of(engine).workers[0]
        os.kill(first.pid, signal.SIGSTOP)
        assert [y.text for y in await answer(engine, ASK)] == [y.text for y in expected]
        assert pool_of(engine).workers[0] is not first


async def test_large_model_and_pair_may_live_on_different_devices(config: EngineConfig, engine: Engine) -> None:
    """Two processes, and each loads what is its own; the answer is that of one process."""
    far = replace(
        config,
        workers=replace(config.workers, devices=("cpu:0", "cpu:1")),
        large_models={"large": replace(config.large_models["large"], devices=("cpu:0",))},
        pairs={name: replace(pair, devices=("cpu:1",)) for name, pair in config.pairs.items()},
    )
    expected = await answer(engine, ASK)
    async with build_engine(far) as divided:
        assert [len(worker.models) for worker in pool_of(divided).workers] == [1, 4]
        assert [y.text for y in await answer(divided, ASK)] == [y.text for y in expected]


async def test_several_workers_share_the_requests(config: EngineConfig) -> None:
    async with build_engine(replace(config, workers=replace(config.workers, devices=("cpu", "cpu")))) as engine:
        seen: set[int] = set()

        async def watched(request: GenerationRequest) -> list[str]:
            result = await answer(engine, request)
            seen.update(worker.rows for worker in pool_of(engine).workers)
            return [y.text for y in result]

        requests = [replace(ASK, sampling=SamplingParams(max_tokens=30, seed=seed)) for seed in range(6)]
        together = await asyncio.gather(*(watched(request) for request in requests))
        assert together == [[y.text for y in await answer(engine, request)] for request in requests]
        assert all(worker.rows == 0 for worker in pool_of(engine).workers)
        assert len(seen) > 1
        await assert_nothing_is_held(engine)


LONG = SamplingParams(max_tokens=120, seed=5)


async def kill_in_the_middle(engine: Engine, sampling: SamplingParams = LONG) -> None:
    request = replace(ASK, sampling=sampling)
    requests = [request, replace(request, model="plain", n=2), replace(request, guidance=FOREIGN)]
    undisturbed = [await answer(engine, r) for r in requests]
    tasks = [asyncio.create_task(answer(engine, r)) for r in requests]
    events = engine.generate(request)
    async with aclosing(events):
        async for _ in events:  # the worker is in the middle of it
            os.kill(pool_of(engine).workers[0].pid, signal.SIGKILL)
            break
    disturbed = await asyncio.gather(*tasks)
    assert [[y.text for y in ys] for ys in disturbed] == [[y.text for y in ys] for ys in undisturbed]
    assert engine.ready
    await assert_nothing_is_held(engine)
