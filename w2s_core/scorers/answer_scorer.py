"""A scorer made of a function of texts: the short way to a scorer of one's own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

from w2s_core.scorers.pair_model import pair_prompt_text
from w2s_core.types import Hypothesis, Prompt, ProviderUsage, Score

ScoreFunction: TypeAlias = Callable[[str, Sequence[str]], Sequence[float] | Awaitable[Sequence[float]]]
_RAW_PROMPT = "{prompt}"


class AnswerScorer:
    """A `Scorer` of a function `score(prompt, answers)`, which returns one number per answer, in their order.

    `prompt` is the text to complete, or the conversation's last user message; the answers are what has been written so
    far, most of them unfinished. The numbers compete with the pairs' nats, by their weights. A plain function runs in a
    thread, so that it does not hold other requests up; it may also be `async`. Each answer is scored once.
    """

    def __init__(self, score: ScoreFunction) -> None:
        self._score = score

    def check(self, _prompt: Prompt, max_tokens: int) -> int:
        return max_tokens

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[AnswerScoring]:
        yield AnswerScoring(self._score, pair_prompt_text(prompt, _RAW_PROMPT))


class AnswerScoring:
    """One prompt's session with an AnswerScorer."""

    scored_tokens = 0
    provider_usage = ProviderUsage()

    def __init__(self, score: ScoreFunction, prompt: str) -> None:
        self._score = score
        self._prompt = prompt
        self._known: dict[str, float] = {}  # of the answers in the latest call

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        await self.score(candidates)

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        new = list(dict.fromkeys(y.text for y in candidates if y.text not in self._known))
        values: Sequence[float] = ()
        if new:
            result = await asyncio.to_thread(self._score, self._prompt, new)
            values = await result if inspect.isawaitable(result) else result
        known = self._known | {text: float(value) for text, value in zip(new, values, strict=True)}
        self._known = {y.text: known[y.text] for y in candidates}
        return [Score(self._known[y.text]) for y in candidates]
