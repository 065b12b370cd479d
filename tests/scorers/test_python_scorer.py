"""A scorer that implements the protocol itself: whatever it gets wrong is an error that names it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
import pytest

from w2s_core.errors import RequestError, ScorerError
from w2s_core.scorers.python_scorer import PythonScorer
from w2s_core.types import Hypothesis, Prompt, ProviderUsage, Score, TextPrompt

PROMPT = TextPrompt("x")


class Session:
    """A scoring session of a user's own, as it should be."""

    scored_tokens: Any = 0
    provider_usage: Any = ProviderUsage()

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        pass

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        self.scored_tokens += 2
        return [Score(1.0) for _ in candidates]


class Bare:
    """A session that has only what scores."""

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        return [Score(1.0) for _ in candidates]


def session(**attributes: Any) -> Session:
    made = Session()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


class Own:
    """A scorer of a user's own, whose `check` gives this value, and whose sessions fail to close with this error."""

    def __init__(self, session: Any = None, check: Any = 7, closing: BaseException | None = None) -> None:
        self._session = session or Session()
        self._check = check
        self._closing = closing

    def check(self, _prompt: Prompt, _max_tokens: int) -> Any:
        return self._check

    @asynccontextmanager
    async def open(self, _prompt: Prompt) -> AsyncIterator[Any]:
        try:
            yield self._session
        finally:
            if self._closing is not None:
                raise self._closing


async def score(scorer: Own) -> tuple[list[Score], int]:
    """The scores of two answers, and the session's tokens."""
    async with PythonScorer("mine", scorer).open(PROMPT) as scoring:
        candidates = [Hypothesis(text="a"), Hypothesis(text="b")]
        await scoring.prefetch(candidates)
        return await scoring.score(candidates), scoring.scored_tokens


async def test_what_is_right_passes() -> None:
    assert await score(Own()) == ([Score(1.0), Score(1.0)], 2)
    assert PythonScorer("mine", Own()).check(PROMPT, 5) == 5
    assert PythonScorer("mine", Own(check=np.int64(3))).check(PROMPT, 5) == 3
    assert PythonScorer("mine", Own(check=0)).check(PROMPT, 0) == 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "its `check` gave a NoneType, not a number of tokens"),
        (2.5, "its `check` gave a float"),
        (True, "its `check` gave a bool"),
        (float("nan"), "its `check` gave a float"),
        ("12", "its `check` gave a str"),
        (-1, "its `check` gave -1"),
        (0, "its `check` returned 0, where it must refuse the request"),
    ],
)
def test_odd_values_of_check(value: Any, message: str) -> None:
    with pytest.raises(ScorerError, match=f"The scorer `mine` failed: {message}"):
        PythonScorer("mine", Own(check=value)).check(PROMPT, 12)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Bare(), "The scorer `mine` failed."),
        (session(scored_tokens=None), "its `scored_tokens` gave a NoneType"),
        (session(scored_tokens=-4), "its `scored_tokens` gave -4"),
        (session(provider_usage=None), "its `provider_usage` is a NoneType, not a ProviderUsage"),
        (session(prefetch=None), "The scorer `mine` failed."),
    ],
)
async def test_sessions_that_lack_something(broken: Any, message: str) -> None:
    with pytest.raises(ScorerError, match="The scorer `mine` failed") as caught:
        await score(Own(broken))
    assert message in str(caught.value)


async def test_a_session_without_its_costs_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    own = Own(Bare(), closing=ValueError("closed"))
    with caplog.at_level(logging.ERROR), pytest.raises(ScorerError, match="`mine`") as caught:
        await score(own)
    assert isinstance(caught.value.__cause__, AttributeError)
    assert "ValueError: closed" in caplog.text


@pytest.mark.parametrize("closing", [ValueError("swordfish"), SystemExit(3)])
async def test_an_error_while_a_session_closes_names_the_scorer(closing: BaseException) -> None:
    with pytest.raises(ScorerError, match="The scorer `mine` failed") as caught:
        await score(Own(closing=closing))
    assert caught.value.__cause__ is closing
    assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RequestError("no", "prompt"), ScorerError("`other`")])
async def test_a_request_that_fails_keeps_its_error_and_the_log_has_the_sessions(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(type(error)) as caught:
        async with PythonScorer("mine", Own(closing=ValueError("swordfish"))).open(PROMPT):
            raise error
    assert caught.value is error
    assert "the scorer `mine` failed while it closed a session" in caplog.text
    assert "ValueError: swordfish" in caplog.text


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ScorerError("`other`")])
async def test_a_session_cannot_swallow_an_error_that_is_not_its_own(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    class Swallows(Own):
        @asynccontextmanager
        async def open(self, _prompt: Prompt) -> AsyncIterator[Any]:
            with suppress(BaseException):
                yield Session()

    with pytest.raises(type(error)) as caught:
        async with PythonScorer("mine", Swallows()).open(PROMPT):
            raise error
    assert caught.value is error
    assert not caplog.records


async def test_a_score_is_a_plain_float() -> None:
    class Numpys(Session):
        async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
            return [Score(np.float32(0.5)) for _ in candidates]  # type: ignore[arg-type]

    scores, _ = await score(Own(Numpys()))
    assert [type(each.total) for each in scores] == [float, float]
