"""A scorer from the configuration's `scorers`, checked: what goes wrong in it becomes an error that names it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from math import isfinite
from operator import index
from typing import Any

from w2s_core.errors import ScorerError, W2SError
from w2s_core.interfaces import Scorer, Scoring
from w2s_core.types import Hypothesis, Prompt, ProviderUsage, Score

_log = logging.getLogger(__name__)


class PythonScorer:
    """A `Scorer` that calls another one, which was written for this server's operator. `name` is its key in `scorers`.

    ScorerError names it where it raises, also while a session closes, or returns something that is no score or no
    number of tokens. The other errors of `w2s_core.errors` pass, so that it may refuse a request (RequestError).
    """

    def __init__(self, name: str, scorer: Scorer) -> None:
        self._name = name
        self._scorer = scorer

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        with _errors_of(self._name):
            tokens = _count(self._scorer.check(prompt, max_tokens), "`check`")
            if tokens == 0 < max_tokens:
                raise ScorerError("its `check` returned 0, where it must refuse the request.")
            return min(tokens, max_tokens)

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[PythonScoring]:
        with _errors_of(self._name):
            session = self._scorer.open(prompt)
            scoring = PythonScoring(self._name, await session.__aenter__())
        try:
            with _errors_of(self._name):
                scoring.read_usage()
            yield scoring
        except BaseException as error:  # the request's own, which stays its error
            await self._close_failed(session, error)
            raise
        with _errors_of(self._name):
            await session.__aexit__(None, None, None)

    async def _close_failed(self, session: AbstractAsyncContextManager[Scoring], error: BaseException) -> None:
        """Closes a session whose request has failed, and logs where that fails, too."""
        try:
            await session.__aexit__(type(error), error, error.__traceback__)
        except (Exception, SystemExit) as failure:
            if failure is not error:
                _log.error("the scorer `%s` failed while it closed a session", self._name, exc_info=failure)


class PythonScoring:
    """One prompt's session with a `PythonScorer`. What it has cost is read, and checked, when it is opened and after
    every `score`."""

    def __init__(self, name: str, scoring: Scoring) -> None:
        self.scored_tokens = 0
        self.provider_usage = ProviderUsage()
        self._name = name
        self._scoring = scoring

    def read_usage(self) -> None:
        """Takes over what the session has cost so far. Raises ScorerError where it does not tell."""
        self.scored_tokens = _count(self._scoring.scored_tokens, "`scored_tokens`")
        usage = self._scoring.provider_usage
        if not isinstance(usage, ProviderUsage):
            raise ScorerError(f"its `provider_usage` is a {type(usage).__name__}, not a ProviderUsage.")
        self.provider_usage = usage

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
            self.read_usage()
            return [Score(float(score.total)) for score in scores]  # which may be a number of NumPy's or torch's


def _count(value: Any, source: str) -> int:
    """A number of tokens. Raises ScorerError, naming its source, where it is none."""
    try:
        if isinstance(value, bool):
            raise TypeError
        count = index(value)
    except TypeError:
        raise ScorerError(f"its {source} gave a {type(value).__name__}, not a number of tokens.") from None
    if count < 0:
        raise ScorerError(f"its {source} gave {count}, which is no number of tokens.")
    return count


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    try:
        yield
    except ScorerError as error:
        raise ScorerError(f"The scorer `{name}` failed: {error}") from error
    except W2SError:
        raise
    except (Exception, SystemExit) as error:  # the second would end the server
        raise ScorerError(f"The scorer `{name}` failed.") from error
