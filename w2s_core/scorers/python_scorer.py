"""Scorers in Python that the configuration names: found, made, and kept from failing more than the request at hand."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from w2s_core.config import PythonScorerConfig
from w2s_core.errors import ConfigurationError, W2SError, WorkerError
from w2s_core.interfaces import Scorer, Scoring
from w2s_core.types import Hypothesis, Prompt, ProviderUsage, Score

_log = logging.getLogger(__name__)


def python_scorer(name: str, config: PythonScorerConfig) -> PythonScorer:
    """Calls the factory "package.module:factory" with its options.

    The module is one that is installed, or a file in the working directory. Raises ConfigurationError, naming the key.
    """
    key = f"scorers.{name}"
    factory = _factory(f"{key}.python", config.python)
    try:
        scorer = factory(**config.options)
    except W2SError:
        raise
    except Exception as error:
        raise ConfigurationError(f"{key}: `{config.python}` raised {type(error).__name__}: {error}") from error
    if not all(callable(getattr(scorer, method, None)) for method in ("check", "open")):
        raise ConfigurationError(
            f"{key}.python: `{config.python}` returned {type(scorer).__name__}, which is no scorer: it has no methods "
            "`check` and `open`. To make a scorer of a function, return w2s_core.AnswerScorer(function)."
        )
    return PythonScorer(name, scorer)


def _factory(key: str, reference: str) -> Any:
    module, colon, attribute = reference.partition(":")
    if not (module and colon and attribute):
        raise ConfigurationError(f"{key}: `{reference}` must be like package.module:factory.")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)  # last, so that it hides nothing that is installed
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        where = "" if error.name in (module, module.partition(".")[0]) else f" It is imported by `{module}`."
        raise ConfigurationError(f"{key}: there is no module `{error.name}`.{where}") from error
    except Exception as error:
        raise ConfigurationError(f"{key}: `{module}` cannot be imported: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigurationError(f"{key}: `{module}` has no function or class `{attribute}`.")
    return found


class PythonScorer:
    """A `Scorer` around another one: what that raises, W2SErrors aside, becomes a WorkerError that names it."""

    def __init__(self, name: str, scorer: Scorer) -> None:
        self._name = name
        self._scorer = scorer

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        with _naming(self._name):
            return self._scorer.check(prompt, max_tokens)

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[PythonScoring]:
        async with AsyncExitStack() as stack:
            with _naming(self._name):
                session = await stack.enter_async_context(self._scorer.open(prompt))
            yield PythonScoring(self._name, session)


class PythonScoring:
    """One prompt's session with a PythonScorer."""

    def __init__(self, name: str, session: Scoring) -> None:
        self._name = name
        self._session = session

    @property
    def scored_tokens(self) -> int:
        return self._session.scored_tokens

    @property
    def provider_usage(self) -> ProviderUsage:
        return self._session.provider_usage

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        with _naming(self._name):
            await self._session.prefetch(candidates)

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        with _naming(self._name):
            scores = await self._session.score(candidates)
            if len(scores) != len(candidates):
                raise ValueError(f"{len(scores)} scores for {len(candidates)} answers")
            return scores


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except W2SError:
        raise
    except Exception as error:
        _log.exception("the scorer `%s` failed", name)
        raise WorkerError(f"The scorer `{name}` failed: {type(error).__name__}.") from error
