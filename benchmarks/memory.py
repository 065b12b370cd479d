"""The peak KV use of a guided request, compared with the prediction and with the published search."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from benchmarks.prompts import excerpt
from benchmarks.settings import DEMO, LARGE, Models, Settings, Workload
from w2s_core.engine.engine import Engine
from w2s_core.large.local import LocalLargeModel
from w2s_core.pool.messages import ModelSpec, WorkerSpec
from w2s_core.pool.pool import WorkerPool
from w2s_core.scorers.local import LocalScorer
from w2s_core.scorers.pair_model import PairModel
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import GenerationRequest, Guidance, SamplingParams, TokenPrompt

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class KVUsage:
    """The peak number of KV slots (tokens) that a request holds in the large model's cache, reserved ones included."""

    load: Workload
    peak_tokens: int

    @property
    def predicted(self) -> int:
        """P + W·C + W·K·L, where C is the answer's length before the last chunk."""
        load = self.load
        return load.prompt + load.w * (load.tokens - load.length) + load.rows * load.length

    @property
    def published(self) -> int:
        """W·K·(P + T): the published search keeps a copy of the whole sequence per row."""
        return self.load.rows * (self.load.prompt + self.load.tokens)


async def memory(models: Models, settings: Settings, loads: Sequence[Workload]) -> list[KVUsage]:
    """Runs the workloads one after another, guided by the demo pair, in a worker of their own."""
    tuned, untuned, template = models.pairs[DEMO]
    specs = {name: ModelSpec(name, trust_remote_code=False) for name in (models.large, tuned, untuned)}
    pool = WorkerPool([WorkerSpec("cpu", settings.dtype, settings.threads, 0, specs)])
    tokenizer = HFTokenizer(models.large)
    pair = [PairModel(name, HFTokenizer(name), shares_tokens=False) for name in (tuned, untuned)]
    large = LocalLargeModel(models.large, tokenizer, pool)
    scorer = LocalScorer(pool, pair[0], pair[1], template)
    async with Engine({LARGE: large}, {DEMO: scorer}, {LARGE: (LARGE, None)}, worker_pool=pool) as engine:
        return [
            KVUsage(load, await _peak_kv_tokens(engine, pool, models.large, _request(tokenizer, load)))
            for load in loads
        ]


def _request(tokenizer: HFTokenizer, load: Workload) -> GenerationRequest:
    return GenerationRequest(
        LARGE,
        (TokenPrompt(excerpt(tokenizer, load.prompt, load.tokens)),),
        SamplingParams(max_tokens=load.tokens, seed=1),
        guidance=Guidance("cbs", {DEMO: 1.0}, load.w, load.k, load.length),
    )


async def _peak_kv_tokens(engine: Engine, pool: WorkerPool, model: str, request: GenerationRequest) -> int:
    async def run() -> None:
        async with aclosing(engine.generate(request)) as events:
            async for _ in events:
                pass

    peak = 0
    task = asyncio.create_task(run())
    while not task.done():
        peak = max(peak, *(state.slots_used[model] for state in await pool.inspect()))
        await asyncio.wait({task}, timeout=_POLL_S)
    await task
    return peak
