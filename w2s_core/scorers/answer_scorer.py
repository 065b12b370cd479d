"""A scorer from a plain function of a prompt and its answers' texts: the shortest way to a scorer of one's own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from math import isfinite
from threading import Thread
from typing import Any, SupportsFloat, TypeAlias

from w2s_core.errors import ScorerError
from w2s_core.scorers.pair_model import pair_prompt_text
from w2s_core.types import Hypothesis, Prompt, ProviderUsage, Score

Values: TypeAlias = Iterable[SupportsFloat]
AnswerFunction: TypeAlias = Callable[[Any, list[str]], Values | Awaitable[Values]]


class AnswerScorer:
    """A `Scorer` that calls `score(prompt, answers)`, which returns one finite number per answer, higher is better.

        def brevity() -> AnswerScorer:
            return AnswerScorer(lambda prompt, answers: [-len(answer) for answer in answers])

    `answers` are distinct texts of whole answers so far, most of them unfinished. `prompt` is the text of a completion
    prompt or of a chat's last user message; with `whole_prompt` it is the `TextPrompt` or `ChatPrompt` itself.

    It is called once per chunk, with the answers that it did not score in the chunk before, in a thread of its own, so
    for several requests at the same time. An awaitable that it returns, as a coroutine function does, is awaited in the
    event loop, which it must not block.

    Raises ScorerError where it returns too few numbers or too many, or something that is no finite number.
    """

    def __init__(self, score: AnswerFunction, *, whole_prompt: bool = False) -> None:
        self._score = score
        self._whole_prompt = whole_prompt
        self._name = getattr(score, "__name__", type(score).__name__)

    def check(self, _prompt: Prompt, max_tokens: int) -> int:
        return max_tokens

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[AnswerScoring]:
        yield AnswerScoring(self, prompt if self._whole_prompt else pair_prompt_text(prompt, "{prompt}"))

    async def values(self, prompt: Prompt | str, answers: list[str]) -> list[float]:
        """The scores of these answers, checked."""
        found = await self._in_thread(prompt, list(answers))
        if inspect.isawaitable(found):
            found = await found
        values = [self._checked(value) for value in found]
        if len(values) != len(answers):
            raise ScorerError(f"`{self._name}` returned {len(values)} scores for {len(answers)} answers.")
        return values

    async def _in_thread(self, prompt: Prompt | str, answers: list[str]) -> Any:
        """Calls the function in a thread of its own, which no other call and no exit of the process waits for."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def deliver(found: Any, error: Exception | None) -> None:
            if done.done():  # whoever waited has left
                if inspect.iscoroutine(found):
                    found.close()
            elif error is None:
                done.set_result(found)
            else:
                done.set_exception(error)

        def call() -> None:
            result = self._call(prompt, answers)
            with suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(deliver, *result)

        Thread(target=call, name=self._name, daemon=True).start()
        return await done

    def _call(self, prompt: Prompt | str, answers: list[str]) -> tuple[Any, Exception | None]:
        try:
            found = self._score(prompt, answers)
            return (found if inspect.isawaitable(found) else list(found)), None  # a generator works here, too
        except (StopIteration, SystemExit) as error:  # the first no future can hold, the second would end the process
            failure = RuntimeError(type(error).__name__)
            failure.__cause__ = error
            return None, failure
        except Exception as error:
            return None, error

    def _checked(self, value: Any) -> float:
        try:
            if isinstance(value, str):  # a text, or an answer that is a key
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            raise ScorerError(f"`{self._name}` returned a {type(value).__name__} where a score belongs.") from None
        if not isfinite(number):
            raise ScorerError(f"`{self._name}` returned {number} as a score, which is not a finite number.")
        return number


class AnswerScoring:
    """One prompt's session with an `AnswerScorer`."""

    scored_tokens = 0
    provider_usage = ProviderUsage()

    def __init__(self, scorer: AnswerScorer, prompt: Prompt | str) -> None:
        self._scorer = scorer
        self._prompt = prompt
        self._known: dict[str, float] = {}

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        """Does nothing: a function that sees all candidates of a chunk at once can score them in one batch."""

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        texts = dict.fromkeys(y.text for y in candidates)
        new = [text for text in texts if text not in self._known]
        values = await self._scorer.values(self._prompt, new) if new else []
        known = self._known | dict(zip(new, values, strict=True))
        self._known = {text: known[text] for text in texts}
        return [Score(known[y.text]) for y in candidates]
