"""Log-probabilities through the engine and a real worker, against transformers alone (float32, 1e-4)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.worker.test_engine_on_workers import assert_nothing_is_held, pool_of
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import ChoiceFinished, PromptRead, TextCommitted, TokenInfo
from w2s_core.types import ChatPrompt, GenerationRequest, Guidance, Prompt, SamplingParams, TextPrompt, TokenPrompt

pytestmark = pytest.mark.asyncio(loop_scope="session")

ASK = GenerationRequest(
    "plain",
    (TextPrompt("Once upon a time"),),
    SamplingParams(max_tokens=24, seed=11, logprobs=3, temperature=0.7, top_k=20, repetition_penalty=1.3),
    n=2,
    with_tokens=True,
    with_prompt=True,
    prompt_logprobs=2,
)


async def answers(
    engine: Engine, request: GenerationRequest
) -> tuple[dict[int, PromptRead], dict[int, list[TokenInfo]]]:
    """Per choice: its prompt, and all its tokens."""
    prompts: dict[int, PromptRead] = {}
    tokens: dict[int, list[TokenInfo]] = {}
    async for event in engine.generate(request):
        if isinstance(event, PromptRead):
            prompts |= dict.fromkeys(event.choices, event)
        if isinstance(event, TextCommitted | ChoiceFinished):
            assert event.index in prompts, "the prompt comes first"
            tokens.setdefault(event.index, []).extend(event.tokens)
    return prompts, tokens


def assert_right(folder: Path, prompt: Sequence[TokenInfo], answer: Sequence[TokenInfo]) -> None:
    """All reported log-probabilities are the model's own, before temperature, top_k and penalties."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    everything = [*prompt, *answer]
    with torch.inference_mode():
        logprobs = model(input_ids=torch.tensor([[t.token for t in everything]])).logits[0].log_softmax(-1)
    assert everything[0].logprob is None
    for i, token in enumerate(everything[1:]):
        assert token.logprob == pytest.approx(logprobs[i, token.token].item(), abs=1e-4)
        best = logprobs[i].topk(len(token.alternatives)).values.tolist()
        assert [nats for _, _, nats in token.alternatives] == pytest.approx(best, abs=1e-4)
        for other, _, nats in token.alternatives:
            assert nats == pytest.approx(logprobs[i, other].item(), abs=1e-4)
    assert {len(token.alternatives) for token in prompt[1:]} <= {2}
    assert {len(token.alternatives) for token in answer} == {3}


@pytest.mark.parametrize("guidance", [None, Guidance("cbs", {"same": 1.0}, 3, 3, 4), Guidance("best_of_n", {}, 2, 5)])
@pytest.mark.parametrize(
    "prompt",
    [
        TextPrompt("Once upon a time"),
        TokenPrompt(tuple(range(100)) * 3),
        ChatPrompt(({"role": "user", "content": "Hi €"},)),
    ],
)
async def test_prompt_and_answer_logprobs_are_those_of_transformers(
    engine: Engine, folders: dict[str, Path], prompt: Prompt, guidance: Guidance | None
) -> None:
    prompts, tokens = await answers(engine, replace(ASK, prompts=(prompt,), guidance=guidance))
    for index in (0, 1):
        assert_right(folders["large"], prompts[index].tokens, tokens[index])
    await assert_nothing_is_held(engine)


async def test_a_text_longer_than_a_slice_in_company(engine: Engine, folders: dict[str, Path]) -> None:
    requests = [
        replace(ASK, prompts=(TokenPrompt(tuple((i * seed) % 256 for i in range(400))),), n=1) for seed in range(1, 5)
    ]
    for prompts, tokens in await asyncio.gather(*(answers(engine, request) for request in requests)):
        assert_right(folders["large"], prompts[0].tokens, tokens[0])


async def test_no_tokens_at_all(engine: Engine, folders: dict[str, Path]) -> None:
    sampling = replace(ASK.sampling, max_tokens=0)
    for guidance in (None, Guidance("cbs", {"same": 1.0}, 3, 3, 4)):
        prompts, tokens = await answers(engine, replace(ASK, sampling=sampling, guidance=guidance))
        assert tokens == {0: [], 1: []}
        assert all(token.logprob is not None for token in prompts[0].tokens[1:])


async def test_a_worker_that_dies_over_a_prompt_is_replaced(mortal: Engine, folders: dict[str, Path]) -> None:
    request = replace(ASK, prompts=(TokenPrompt(tuple(i % 256 for i in range(450))),), n=1)
    asking = [asyncio.create_task(answers(mortal, request)) for _ in range(4)]
    await asyncio.sleep(0)
    os.kill(pool_of(mortal).workers[0].pid, signal.SIGKILL)
    for prompts, tokens in await asyncio.gather(*asking):
        assert_right(folders["large"], prompts[0].tokens, tokens[0])
    await assert_nothing_is_held(mortal)
