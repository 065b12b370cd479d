"""Ranks answers by the large model's own mean log-probability per token: OpenAI's `best_of` without a pair."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from w2s_core.types import MIN_LOGPROB, Hypothesis, Prompt, ProviderUsage, Score


class LikelihoodScorer:
    """A `Scorer` that runs no model, because each hypothesis carries its log-probabilities under π_base."""

    scored_tokens = 0
    provider_usage = ProviderUsage()

    def check(self, _prompt: Prompt, max_tokens: int) -> int:
        return max_tokens

    @asynccontextmanager
    async def open(self, _prompt: Prompt) -> AsyncIterator[LikelihoodScorer]:
        yield self

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        pass

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        """Mean log-probability in nats per token, the ending token included."""
        return [_mean_logprob(y.as_scored) for y in candidates]


def _mean_logprob(y: Hypothesis) -> Score:
    return Score(sum(max(nats, MIN_LOGPROB) for nats in y.logprobs) / max(1, y.length))
