"""The upper bound for a search through vLLM: a script that makes the same calls and nothing else.

It samples K continuations of each beam concurrently and keeps W at random: no scoring, no decoding, no checks. No
search through the same provider can be faster.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

import httpx

from benchmarks.figures import Trial
from benchmarks.settings import Workload
from benchmarks.vllm_process import MODEL
from w2s_core.types import Tokens

_SEEDS = 2**40
_TIMEOUT_S = 600.0


async def bare_search(url: str, load: Workload, prompts: Sequence[Tokens], seed: int) -> Trial:
    """Searches all prompts concurrently. The trial's tokens are those of one beam per prompt, which no EOS ends."""
    limits = httpx.Limits(max_connections=load.w * len(prompts))
    async with (
        asyncio.timeout(_TIMEOUT_S),
        httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, limits=limits) as client,
    ):
        start = time.perf_counter()
        await asyncio.gather(*(_search(client, load, prompt, seed + i) for i, prompt in enumerate(prompts)))
        return Trial(load.tokens * len(prompts), time.perf_counter() - start)


async def _search(client: httpx.AsyncClient, load: Workload, prompt: Tokens, seed: int) -> None:
    rng = random.Random(seed)
    beam: list[Tokens] = [()] * load.w
    for done in range(0, load.tokens, load.length):
        length = min(load.length, load.tokens - done)
        bodies = [call(prompt + tokens, load.k, length, rng.randrange(_SEEDS)) for tokens in beam]
        successors = await asyncio.gather(*(_continuations(client, body) for body in bodies))
        candidates = [parent + chunk for parent, chunks in zip(beam, successors, strict=True) for chunk in chunks]
        beam = rng.sample(candidates, load.w)


def call(tokens: Tokens, n: int, length: int, seed: int) -> dict[str, Any]:
    """The body of one call: `n` continuations of `length` tokens."""
    return {
        "model": MODEL,
        "prompt": list(tokens),
        "n": n,
        "max_tokens": length,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": seed,
        "ignore_eos": True,
        "return_token_ids": True,
        "logprobs": 0,
    }


async def _continuations(client: httpx.AsyncClient, body: dict[str, Any]) -> list[Tokens]:
    answer = await client.post("/v1/completions", json=body)
    return [tuple(choice["token_ids"]) for choice in answer.raise_for_status().json()["choices"]]
