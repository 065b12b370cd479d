"""A scorer from the configuration's `scorers`, checked: what goes wrong in it becomes an error that names it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from math import isfinite

from w2s_core.errors import ScorerError, W2SError
from w2s_core.interfaces import Scorer, Scoring
from w2s_core.types import Hypothesis, Prompt, ProviderUsage, Score


class PythonScorer:
    """A `Scorer` that calls another one, which was written for this server's operator. `name` is its key in `scorers`.

    ScorerError names it where it raises, or returns something that is no score. The other errors of `w2s_core.errors`
    pass, so that it may refuse a request (RequestError).
    """

    def __init__(self, name: str, scorer: Scorer) -> None:
        self._name = name
        self._scorer = scorer

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        with _errors_of(self._name):
            return min(self._scorer.check(prompt, max_tokens), max_tokens)

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[PythonScoring]:
        async with AsyncExitStack() as stack:
            with _errors_of(self._name):
                scoring = await stack.enter_async_context(self._scorer.open(prompt))
            yield PythonScoring(self._name, scoring)


class PythonScoring:
    """One prompt's session with a `PythonScorer`."""

    def __init__(self, name: str, scoring: Scoring) -> None:
        self._name = name
        self._scoring = scoring

    @property
    def scored_tokens(self) -> int:
        return self._scoring.scored_tokens

    @property
    def provider_usage(self) -> ProviderUsage:
        return self._scoring.provider_usage

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        with _errors_of(self._name):
            await self._scoring.prefetch(candidates)

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        with _errors_of(self._name):
            scores = await self._scoring.score(candidates)
            if len(scores) != len(candidates):
                raise ScorerError(f"it returned {len(scores)} scores for {len(candidates)} answers.")
            if not all(isfinite(score.total) for score in scores):
                raise ScorerError("it returned a score that is not a finite number.")
        return scores


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    try:
        yield
    except ScorerError as error:
        raise ScorerError(f"The scorer `{name}` failed: {error}") from error
    except W2SError:
        raise
    except Exception as error:
        raise ScorerError(f"The scorer `{name}` failed.") from error
