"""The weighted sum of several scorers: Σ_j w_j · score_j. A negative weight steers away from what one prefers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from math import isfinite

from w2s_core.aio import gather_all
from w2s_core.errors import UpstreamError, WorkerError
from w2s_core.interfaces import Scorer, Scoring
from w2s_core.types import Hypothesis, Prompt, ProviderUsage, Score


class CombinedScorer:
    """A `Scorer` that sums the named scorers in `weights`."""

    def __init__(self, scorers: Mapping[str, Scorer], weights: Mapping[str, float]) -> None:
        self._scorers = {name: scorers[name] for name in weights}
        self._weights = dict(weights)

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        return min((scorer.check(prompt, max_tokens) for scorer in self._scorers.values()), default=max_tokens)

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[CombinedScoring]:
        async with AsyncExitStack() as stack:
            opened = ((name, scorer.open(prompt)) for name, scorer in self._scorers.items())
            sessions = {name: await stack.enter_async_context(session) for name, session in opened}
            yield CombinedScoring(sessions, self._weights)


class CombinedScoring:
    """One prompt's session with all scorers, which score concurrently."""

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
        return [Score(self._total(scores), scores) for scores in by_candidate]

    def _total(self, scores: Mapping[str, float]) -> float:
        """The weighted sum. Raises WorkerError or UpstreamError, naming the scorer, where it is not a finite number."""
        total = sum(self._weights[name] * score for name, score in scores.items())
        if not isfinite(total):
            names = [name for name, score in scores.items() if not isfinite(score)] or list(scores)
            remote = any(self._sessions[name].provider_usage.calls for name in names)
            raise (UpstreamError if remote else WorkerError)(
                f"The score of {', '.join(f'`{name}`' for name in names)} is not a finite number."
            )
        return total
