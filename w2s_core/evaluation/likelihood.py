"""Log-likelihoods and implicit scores of answers, computed in float32 and in the same way for every method.

They do not depend on the engine's dtype: a separate worker loads the large model and the pair after the engine stopped.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from w2s_core.demo.models import PREFIX as DEMO
from w2s_core.demo.models import resolve
from w2s_core.evaluation.prompts import PREFIX
from w2s_core.evaluation.settings import Settings
from w2s_core.interfaces import Scorer
from w2s_core.large.local import LocalLargeModel
from w2s_core.pool.pool import WorkerPool
from w2s_core.pool.specs import ModelSpec, WorkerSpec
from w2s_core.scorers.local import LocalScorer
from w2s_core.scorers.pair_model import PairModel
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Hypothesis, TextPrompt

Likelihood = Callable[[str, str], Awaitable[float | None]]


class LikelihoodEvaluator:
    """Scores answers with the pair and the large model.

    `likelihood(prompt, text)` is log p_large(text | prompt) per token in nats, None for an empty text.
    """

    def __init__(self, scorer: Scorer, likelihood: Likelihood) -> None:
        self._scorer = scorer
        self._likelihood = likelihood

    async def implicit_score(self, opener: str, hypothesis: Hypothesis) -> float:
        """log π_tuned − log π_untuned of the answer in nats: the paper's implicit reward."""
        async with self._scorer.open(TextPrompt(PREFIX + opener)) as scoring:
            return (await scoring.score([hypothesis]))[0].total

    async def log_likelihood(self, opener: str, text: str) -> float | None:
        """log p_large per token of the text in nats, None for an empty text."""
        return await self._likelihood(PREFIX + opener, text)


@asynccontextmanager
async def open_evaluator(settings: Settings) -> AsyncIterator[LikelihoodEvaluator]:
    """Starts a worker with the models, which is stopped when the context is left."""
    large, tuned, untuned = map(source, (settings.large, settings.tuned, settings.untuned))
    specs = {name: ModelSpec(name, trust_remote_code=False) for name in (large, tuned, untuned)}
    pool = WorkerPool([WorkerSpec("cpu", "float32", os.cpu_count() or 1, 0, specs)])
    # The small model's answers have no tokens of the large model, so all answers are scored by their text.
    pair = [PairModel(name, HFTokenizer(name), shares_tokens=False) for name in (tuned, untuned)]
    scorer = LocalScorer(pool, pair[0], pair[1], settings.prompt_template)
    await pool.start()
    try:
        yield LikelihoodEvaluator(scorer, _likelihood(large, pool))
    finally:
        await pool.stop()


def source(reference: str) -> str:
    """The folder or hub id to load with transformers. Demo models are fetched first if they are not cached."""
    return str(resolve(reference)) if reference.startswith(DEMO) else reference


def _likelihood(model: str, pool: WorkerPool) -> Likelihood:
    tokenizer = HFTokenizer(model)
    large = LocalLargeModel(model, tokenizer, pool)

    async def per_token(prompt: str, text: str) -> float | None:
        tokens = tokenizer.encode(text, special_tokens=False)
        if not tokens:
            return None
        async with pool.session(0, {model}) as session:
            result = await session.score(model, large.encode(TextPrompt(prompt)), [tokens])
        return result.logprobs[0] / len(tokens)

    return per_token
