"""The cost of scoring alone: the engine's scorer and a worker, with random candidates instead of a large model."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.figures import Trial
from benchmarks.prompts import story
from benchmarks.settings import DEMO, Models, Settings, Workload
from w2s_core.pool.pool import WorkerPool
from w2s_core.pool.specs import ModelSpec, WorkerSpec
from w2s_core.scorers.local import LocalScorer
from w2s_core.scorers.pair_model import PairModel
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Hypothesis, TextPrompt, Tokens


class ScoringCost:
    """Scores the candidates of a simulated search, whose chunks are random excerpts of a story."""

    def __init__(self, scorer: LocalScorer, tokenizer: HFTokenizer) -> None:
        self._scorer = scorer
        self._tokenizer = tokenizer
        self._story = tokenizer.encode(story(), special_tokens=False)

    async def measure(self, load: Workload, seed: int) -> Trial:
        """Scores W·K candidates a chunk and keeps the best W, `load.tokens` long, `load.streams` times in a row."""
        trials = [await self._search(load, random.Random(seed + i)) for i in range(load.streams)]
        return Trial(sum(trial.tokens for trial in trials), sum(trial.seconds for trial in trials))

    async def _search(self, load: Workload, random_numbers: random.Random) -> Trial:
        """Runs one search; only the scoring is timed."""
        beam = [Hypothesis()] * load.w
        seconds = 0.0
        async with self._scorer.open(TextPrompt("")) as scoring:
            for _ in range(0, load.tokens, load.length):
                candidates = [
                    self._successor(y, self._chunk(random_numbers, load.length)) for y in beam for _ in range(load.k)
                ]
                start = time.perf_counter()
                scores = await scoring.score(candidates)
                seconds += time.perf_counter() - start
                order = sorted(range(len(candidates)), key=lambda i: -scores[i].total)
                beam = [candidates[i] for i in order[: load.w]]
        return Trial(len(beam[0].tokens), seconds)

    def _chunk(self, random_numbers: random.Random, length: int) -> Tokens:
        first = random_numbers.randrange(len(self._story) - length)
        return self._story[first : first + length]

    def _successor(self, parent: Hypothesis, chunk: Tokens) -> Hypothesis:
        tokens = parent.tokens + chunk
        return Hypothesis(tokens=tokens, text=self._tokenizer.decode(tokens), parent=parent)


@asynccontextmanager
async def scoring_cost(models: Models, settings: Settings) -> AsyncIterator[ScoringCost]:
    """Starts a worker with the demo pair alone."""
    tuned, untuned, template = models.pairs[DEMO]
    specs = {name: ModelSpec(name, trust_remote_code=False) for name in (tuned, untuned)}
    pool = WorkerPool([WorkerSpec("cpu", settings.dtype, settings.threads, 0, specs)])
    pair = [PairModel(name, HFTokenizer(name), shares_tokens=False) for name in (tuned, untuned)]
    await pool.start()
    try:
        yield ScoringCost(LocalScorer(pool, pair[0], pair[1], template), HFTokenizer(models.large))
    finally:
        await pool.stop()
