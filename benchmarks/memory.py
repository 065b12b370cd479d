"""How much KV a guided request holds at most, beside what the arithmetic says and what a search as published takes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from benchmarks.prompts import excerpt
from benchmarks.settings import DEMO, LARGE, Models, Settings, Workload
from w2s_core.engine.engine import Engine
from w2s_core.interfaces import Scorer, Scoring
from w2s_core.large.local import LocalLargeModel
from w2s_core.pool.messages import ModelSpec, WorkerSpec
from w2s_core.pool.pool import WorkerPool
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

_Look = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Held:
    """Tokens of the large model's KV: at most `held` by the request, room to grow included."""

    load: Workload
    held: int

    @property
    def predicted(self) -> int:
        """P + W·C + W·K·L, C being what is settled before the last chunk."""
        load = self.load
        return load.prompt + load.w * (load.tokens - load.length) + load.rows * load.length

    @property
    def published(self) -> int:
        """W·K·(P + T): every row with a copy of its own."""
        return self.load.rows * (self.load.prompt + self.load.tokens)


@dataclass
class _KvGauge:
    """The most KV that `model` was seen to hold in the pool's worker since `most` was last set to 0, in tokens."""

    pool: WorkerPool
    model: str
    most: int = 0

    async def look(self) -> None:
        self.most = max(self.most, *(state.slots_used[self.model] for state in await self.pool.inspect()))


class _WatchedScorer:
    """A scorer that looks at the KV before every call. The search has then drawn all rows of a chunk and dropped none
    of them, so that a request never holds more than it does at one of these moments."""

    def __init__(self, scorer: Scorer, look: _Look) -> None:
        self._scorer = scorer
        self._look = look

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        return self._scorer.check(prompt, max_tokens)

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[Scoring]:
        async with self._scorer.open(prompt) as scoring:
            yield _WatchedScoring(scoring, self._look)


class _WatchedScoring:
    def __init__(self, scoring: Scoring, look: _Look) -> None:
        self._scoring = scoring
        self._look = look

    @property
    def scored_tokens(self) -> int:
        return self._scoring.scored_tokens

    @property
    def provider_usage(self) -> ProviderUsage:
        return self._scoring.provider_usage

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        await self._scoring.prefetch(candidates)

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        await self._look()
        return await self._scoring.score(candidates)


async def memory(models: Models, settings: Settings, loads: Sequence[Workload]) -> list[Held]:
    """One request after the other, by the demo pair, on a worker of its own."""
    tuned, untuned, template = models.pairs[DEMO]
    specs = {name: ModelSpec(name, trust_remote_code=False) for name in (models.large, tuned, untuned)}
    pool = WorkerPool([WorkerSpec("cpu", settings.dtype, settings.threads, 0, specs)])
    tokenizer = HFTokenizer(models.large)
    pair = [PairModel(name, HFTokenizer(name), shares_tokens=False) for name in (tuned, untuned)]
    large = LocalLargeModel(models.large, tokenizer, pool)
    gauge = _KvGauge(pool, models.large)
    scorer = _WatchedScorer(LocalScorer(pool, pair[0], pair[1], template), gauge.look)
    async with Engine({LARGE: large}, {DEMO: scorer}, {LARGE: (LARGE, None)}, worker_pool=pool) as engine:
        return [Held(load, await _most_held(engine, gauge, _request(tokenizer, load))) for load in loads]


def _request(tokenizer: HFTokenizer, load: Workload) -> GenerationRequest:
    return GenerationRequest(
        LARGE,
        (TokenPrompt(excerpt(tokenizer, load.prompt, load.tokens)),),
        SamplingParams(max_tokens=load.tokens, seed=1),
        guidance=Guidance("cbs", {DEMO: 1.0}, load.w, load.k, load.length),
    )


async def _most_held(engine: Engine, gauge: _KvGauge, request: GenerationRequest) -> int:
    gauge.most = 0
    async with aclosing(engine.generate(request)) as events:
        async for _ in events:
            pass
    return gauge.most
