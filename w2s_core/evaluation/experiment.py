"""Ask every condition for every answer through the engine (Zhou et al. 2024, section 5.1, in miniature)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from w2s_core.aio import gather_all
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import ChoiceFinished, RequestFinished
from w2s_core.evaluation.prompts import PREFIX
from w2s_core.evaluation.settings import WEAK, Condition, Settings
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import GenerationRequest, Hypothesis, Prompt, SamplingParams, TextPrompt, TokenPrompt

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[Condition], None]  # called after every answer
_SEED_STRIDE = 1_000_003  # prompts never share a seed, conditions always do: that sharpens their differences


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: what it cost in tokens of the large model (pruned ones included) and in seconds of waiting."""

    condition: Condition
    opener: str
    seed: int
    hypothesis: Hypothesis
    sampled_tokens: int
    seconds: float

    @property
    def judged_text(self) -> str:
        """What judges read."""
        return self.opener + self.hypothesis.text


class Interview:
    """Puts the openers to an engine. `weak_prompt` is how the small model gets an opener."""

    def __init__(self, engine: Engine, settings: Settings, weak_prompt: Callable[[str], Prompt] = TextPrompt) -> None:
        self._engine = engine
        self._settings = settings
        self._weak_prompt = weak_prompt

    async def answers(self, condition: Condition, progress: Progress) -> list[Answer]:
        """All of one condition's, prompt by prompt, `concurrency` at a time and nothing else meanwhile."""

        async def one(task: tuple[int, int]) -> Answer:
            answer = await self._answer(condition, *task)
            progress(condition)
            return answer

        openers = range(len(self._settings.openers))
        tasks = [(opener, seed) for opener in openers for seed in range(condition.seeds)]
        return await bounded(one, tasks, self._settings.concurrency)

    async def _answer(self, condition: Condition, index: int, seed: int) -> Answer:
        settings, opener = self._settings, self._settings.openers[index]
        prompt = self._weak_prompt(opener) if condition.model == WEAK else TextPrompt(PREFIX + opener)
        sampling = SamplingParams(
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            seed=seed * _SEED_STRIDE + index,
        )
        request = GenerationRequest(condition.model, (prompt,), sampling, condition.guidance)
        begin = time.perf_counter()
        async with aclosing(self._engine.generate(request)) as events:
            async for event in events:
                if isinstance(event, ChoiceFinished):
                    hypothesis = event.hypothesis
                elif isinstance(event, RequestFinished):
                    drawn = event.guidance.sampled_tokens if event.guidance else event.completion_tokens
        return Answer(condition, opener, seed, hypothesis, drawn, time.perf_counter() - begin)


def behind_bos(tokenizer: HFTokenizer) -> Callable[[str], Prompt]:
    """Openers as the small model knows the beginning of a text: behind BOS, which its tokenizer does not add."""
    return lambda opener: TokenPrompt(tokenizer.empty_prompt + tokenizer.encode(opener, special_tokens=False))


async def bounded(function: Callable[[T], Awaitable[R]], items: Sequence[T], limit: int) -> list[R]:
    """The function's results in the items' order, at most `limit` at work. The first failure stops all."""
    gate = asyncio.Semaphore(limit)

    async def guarded(item: T) -> R:
        async with gate:
            return await function(item)

    return await gather_all([guarded(item) for item in items])
