"""The peak KV use of a guided request, compared with the prediction and with the published search."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from benchmarks.prompts import excerpt
from benchmarks.settings import DEMO, LARGE, Models, Settings, Workload
from w2s_core.config import ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.interfaces import Scorer, Scoring
from w2s_core.large.local import LocalLargeModel
from w2s_core.pool.pool import WorkerPool
from w2s_core.pool.specs import ModelSpec, WorkerSpec
from w2s_core.scorers.local import LocalScorer
from w2s_core.scorers.pair_model import PairModel
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import (
    GenerationRequest,
    Guidance,
    Hypothesis,
    Prompt,
    ProviderUsage,
    SamplingParams,
    Score,
    TokenPrompt,
)

_Measure = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class KVUsage:
    """The peak number of KV slots (tokens) that a request holds in the large model's cache, reserved ones included."""

    load: Workload
    peak_tokens: int

    @property
    def predicted(self) -> int:
        """P + W·(T − L) + W·K·L: before the last chunk a hypothesis has T − L tokens."""
        load = self.load
        return load.prompt + load.w * (load.tokens - load.length) + load.rows * load.length

    @property
    def published(self) -> int:
        """W·K·(P + T): the published search keeps a copy of the whole sequence per row."""
        return self.load.rows * (self.load.prompt + self.load.tokens)


@dataclass
class _PeakUsage:
    """The peak KV usage of `model` in the pool's worker since `tokens` was last set to 0."""

    pool: WorkerPool
    model: str
    tokens: int = 0

    async def update(self) -> None:
        self.tokens = max(self.tokens, *(state.slots_used[self.model] for state in await self.pool.inspect()))


class _MeasuringScorer:
    """A scorer that measures KV usage before every call, when all rows of a chunk are drawn and none is pruned yet:
    that is when a request holds most."""

    def __init__(self, scorer: Scorer, measure: _Measure) -> None:
        self._scorer = scorer
        self._measure = measure

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        return self._scorer.check(prompt, max_tokens)

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[Scoring]:
        async with self._scorer.open(prompt) as scoring:
            yield _MeasuringScoring(scoring, self._measure)


class _MeasuringScoring:
    def __init__(self, scoring: Scoring, measure: _Measure) -> None:
        self._scoring = scoring
        self._measure = measure

    @property
    def scored_tokens(self) -> int:
        return self._scoring.scored_tokens

    @property
    def provider_usage(self) -> ProviderUsage:
        return self._scoring.provider_usage

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        await self._scoring.prefetch(candidates)

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        await self._measure()
        return await self._scoring.score(candidates)


async def memory(models: Models, settings: Settings, loads: Sequence[Workload]) -> list[KVUsage]:
    """Runs the workloads one after another, guided by the demo pair, in a worker of their own."""
    tuned, untuned, template = models.pairs[DEMO]
    specs = {name: ModelSpec(name, trust_remote_code=False) for name in (models.large, tuned, untuned)}
    pool = WorkerPool([WorkerSpec("cpu", settings.dtype, settings.threads, 0, specs)])
    tokenizer = HFTokenizer(models.large)
    pair = [PairModel(name, HFTokenizer(name), shares_tokens=False) for name in (tuned, untuned)]
    large = LocalLargeModel(models.large, tokenizer, pool)
    peak = _PeakUsage(pool, models.large)
    scorer = _MeasuringScorer(LocalScorer(pool, pair[0], pair[1], template), peak.update)
    async with Engine({LARGE: large}, {DEMO: scorer}, {LARGE: ServedModelConfig(LARGE)}, worker_pool=pool) as engine:
        return [KVUsage(load, await _peak_kv_tokens(engine, peak, _request(tokenizer, load))) for load in loads]


def _request(tokenizer: HFTokenizer, load: Workload) -> GenerationRequest:
    return GenerationRequest(
        LARGE,
        (TokenPrompt(excerpt(tokenizer, load.prompt, load.tokens)),),
        SamplingParams(max_tokens=load.tokens, seed=1),
        guidance=Guidance("cbs", {DEMO: 1.0}, load.w, load.k, load.length),
    )


async def _peak_kv_tokens(engine: Engine, peak: _PeakUsage, request: GenerationRequest) -> int:
    peak.tokens = 0
    async with aclosing(engine.generate(request)) as events:
        async for _ in events:
            pass
    return peak.tokens
