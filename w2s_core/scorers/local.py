"""A pair in the local worker pool: log π_tuned − log π_untuned of whole answers, each model in its own tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from w2s_core.aio import gather_all
from w2s_core.pool.messages import ScoreResult
from w2s_core.pool.pool import WorkerPool
from w2s_core.pool.session import Session
from w2s_core.scorers.pair_model import PairModel, log_ratios
from w2s_core.text.retokenizer import Retokenizer
from w2s_core.types import Hypothesis, Prompt, ProviderUsage, Score, Tokens


class LocalScorer:
    """A `Scorer` whose two models run in the worker pool. Without `untuned` scores are log π_tuned alone.

    `template`: see `PairConfig.prompt_template`. Raises ConfigurationError where a model cannot use it.
    """

    def __init__(self, pool: WorkerPool, tuned: PairModel, untuned: PairModel | None, template: str | None) -> None:
        self._pool = pool
        self._models = (tuned,) if untuned is None else (tuned, untuned)
        self._template = template
        for model in self._models:
            model.check_template(template)

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        infos = [self._pool.info(model.pool_name) for model in self._models]
        return min(
            model.max_answer_tokens(prompt, self._template, info.max_length, max_tokens, info.vocabulary)
            for model, info in zip(self._models, infos, strict=True)
        )

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[LocalScoring]:
        async with self._pool.session(0, {model.pool_name for model in self._models}) as session:
            limits = [self._pool.info(model.pool_name).max_length for model in self._models]
            prompts = [model.prompt(prompt, self._template) for model in self._models]
            yield LocalScoring(session, self._models, prompts, limits)


class LocalScoring:
    """One prompt's session with the pair."""

    provider_usage = ProviderUsage()

    def __init__(
        self, session: Session, models: Sequence[PairModel], prompts: Sequence[Tokens], limits: Sequence[int]
    ) -> None:
        self.scored_tokens = 0
        self._session = session
        self._models = models
        self._prompts = prompts
        self._limits = limits
        # Models that have equal tokenizers share one.
        self._retokenizers = {
            model.tokenizer.tokenizer_json: Retokenizer(model.tokenizer, prompt)
            for model, prompt in zip(models, prompts, strict=True)
        }

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        await self.score(candidates)

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        encoded = {key: retokenizer.encode(candidates) for key, retokenizer in self._retokenizers.items()}
        answers = [model.answers(candidates, encoded[model.tokenizer.tokenizer_json]) for model in self._models]
        for model, prompt, tokens, limit in zip(self._models, self._prompts, answers, self._limits, strict=True):
            model.check_length(prompt, candidates, tokens, limit)
        results = await gather_all([self._logprobs(i, answers[i]) for i in range(len(self._models))])
        self.scored_tokens += sum(result.tokens_run for result in results)
        return log_ratios([result.logprobs for result in results])

    async def _logprobs(self, index: int, answers: Sequence[Tokens]) -> ScoreResult:
        return await self._session.score(self._models[index].pool_name, self._prompts[index], answers)
