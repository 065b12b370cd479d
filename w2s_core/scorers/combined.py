"""The weighted sum of several pairs: Σ_j w_j · log-ratio_j. A negative weight steers away from a pair."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from math import isfinite

from w2s_core.aio import gather_all
from w2s_core.errors import UpstreamError, WorkerError
from w2s_core.interfaces import Scorer, Scoring
from w2s_core.types import Hypothesis, Prompt, ProviderUsage, Score


class CombinedScorer:
    """A `Scorer` that sums the named pairs in `weights`."""

    def __init__(self, pairs: Mapping[str, Scorer], weights: Mapping[str, float]) -> None:
        self._pairs = {name: pairs[name] for name in weights}
        self._weights = dict(weights)

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        return min((pair.check(prompt, max_tokens) for pair in self._pairs.values()), default=max_tokens)

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[CombinedScoring]:
        async with AsyncExitStack() as stack:
            sessions = {name: await stack.enter_async_context(pair.open(prompt)) for name, pair in self._pairs.items()}
            yield CombinedScoring(sessions, self._weights)


class CombinedScoring:
    """One prompt's session with all pairs, which score concurrently."""

    def __init__(self, sessions: Mapping[str, Scoring], weights: Mapping[str, float]) -> None:
        self._sessions = sessions
        self._weights = weights

    @property
    def scored_tokens(self) -> int:
        return sum(session.scored_tokens for session in self._sessions.values())

    @property
    def provider_usage(self) -> ProviderUsage:
        return sum((session.provider_usage for session in self._sessions.values()), ProviderUsage())

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        candidates = [y.as_scored for y in candidates]
        await gather_all([session.prefetch(candidates) for session in self._sessions.values()])

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        candidates = [y.as_scored for y in candidates]
        by_session = await gather_all([session.score(candidates) for session in self._sessions.values()])
        by_candidate = [
            {name: score.total for name, score in zip(self._sessions, scores, strict=True)}
            for scores in zip(*by_session, strict=True)
        ]
        return [Score(self._total(log_ratios), log_ratios) for log_ratios in by_candidate]

    def _total(self, log_ratios: Mapping[str, float]) -> float:
        """The weighted sum. Raises WorkerError or UpstreamError, naming the pair, where it is not a finite number."""
        total = sum(self._weights[name] * log_ratio for name, log_ratio in log_ratios.items())
        if not isfinite(total):
            names = [name for name, log_ratio in log_ratios.items() if not isfinite(log_ratio)] or list(log_ratios)
            remote = any(self._sessions[name].provider_usage.calls for name in names)
            raise (UpstreamError if remote else WorkerError)(
                f"The score of pair {', '.join(f'`{name}`' for name in names)} is not a finite number."
            )
        return total
