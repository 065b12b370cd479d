"""A reward model in the local worker pool: its reward of the prompt and each whole answer, in its own tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from w2s_core.pool.pool import WorkerPool
from w2s_core.pool.session import Session
from w2s_core.scorers.pair_model import PairModel
from w2s_core.text.retokenizer import Retokenizer
from w2s_core.types import Hypothesis, Prompt, ProviderUsage, Score, Tokens


class RewardModelScorer:
    """A `Scorer` whose model, a sequence classifier, runs in the worker pool.

    `template`: see `RewardModelConfig.prompt_template`. Raises ConfigurationError where the model cannot use it.
    """

    def __init__(self, pool: WorkerPool, model: PairModel, template: str | None) -> None:
        self._pool = pool
        self._model = model
        self._template = template
        model.check_template(template)

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        info = self._pool.info(self._model.pool_name)
        return self._model.max_answer_tokens(prompt, self._template, info.max_length, max_tokens, info.vocabulary)

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[RewardScoring]:
        name = self._model.pool_name
        async with self._pool.session(0, {name}) as session:
            tokens = self._model.prompt(prompt, self._template)
            yield RewardScoring(session, self._model, tokens, self._pool.info(name).max_length)


class RewardScoring:
    """One prompt's session with the reward model. `limit`: tokens that its context holds."""

    provider_usage = ProviderUsage()

    def __init__(self, session: Session, model: PairModel, prompt: Tokens, limit: int) -> None:
        self.scored_tokens = 0
        self._session = session
        self._model = model
        self._prompt = prompt
        self._limit = limit
        self._retokenizer = Retokenizer(model.tokenizer, prompt)

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        await self.score(candidates)

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        """The reward of each answer, whose last token is EOS where the large model ended it."""
        answers = self._model.answers(candidates, self._retokenizer.encode(candidates))
        self._model.check_length(self._prompt, candidates, answers, self._limit)
        result = await self._session.rewards(self._model.pool_name, self._prompt, answers)
        self.scored_tokens += result.tokens_run
        return [Score(reward) for reward in result.rewards]
