"""Generates the answers of every condition through the engine (Zhou et al. 2024, section 5.1, in miniature)."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from w2s_core.aio import bounded
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import ChoiceFinished, RequestFinished
from w2s_core.evaluation.prompts import PREFIX
from w2s_core.evaluation.settings import WEAK, Condition, Settings
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import GenerationRequest, Hypothesis, Prompt, SamplingParams, TextPrompt, TokenPrompt

Progress = Callable[[Condition], None]  # called after every answer
_SEED_STRIDE = (
    1_000_003  # no two prompts share a seed; all conditions do, which reduces the variance of their differences
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and its cost: tokens sampled from the large model, pruned ones included, and seconds of latency."""

    condition: Condition
    opener: str
    seed: int
    hypothesis: Hypothesis
    sampled_tokens: int
    seconds: float

    @property
    def judged_text(self) -> str:
        """The text that the judges score: opener and answer."""
        return self.opener + self.hypothesis.text


class AnswerGenerator:
    """Generates answers with an engine. `weak_prompt` makes the small model's prompt of an opener."""

    def __init__(self, engine: Engine, settings: Settings, weak_prompt: Callable[[str], Prompt] = TextPrompt) -> None:
        self._engine = engine
        self._settings = settings
        self._weak_prompt = weak_prompt

    async def answers(self, condition: Condition, progress: Progress) -> list[Answer]:
        """All answers of one condition, ordered by opener and seed, with `Settings.concurrency` requests at once."""

        async def generate(task: tuple[int, int]) -> Answer:
            answer = await self._answer(condition, *task)
            progress(condition)
            return answer

        openers = range(len(self._settings.openers))
        tasks = [(opener, seed) for opener in openers for seed in range(condition.seeds)]
        return await bounded(generate, tasks, self._settings.concurrency)

    async def _answer(self, condition: Condition, index: int, seed: int) -> Answer:
        settings, opener = self._settings, self._settings.openers[index]
        prompt = self._weak_prompt(opener) if condition.model == WEAK else TextPrompt(PREFIX + opener)
        sampling = SamplingParams(
            max_tokens=condition.max_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            seed=seed * _SEED_STRIDE + index,
        )
        request = GenerationRequest(condition.model, (prompt,), sampling, condition.guidance)
        start = time.perf_counter()
        async with aclosing(self._engine.generate(request)) as events:
            async for event in events:
                if isinstance(event, ChoiceFinished):
                    hypothesis = event.hypothesis
                elif isinstance(event, RequestFinished):
                    sampled = event.guidance.sampled_tokens if event.guidance else event.completion_tokens
        return Answer(condition, opener, seed, hypothesis, sampled, time.perf_counter() - start)


def behind_bos(tokenizer: HFTokenizer) -> Callable[[str], Prompt]:
    """Makes prompts of BOS and an opener, as the small model was trained on; its tokenizer does not add BOS."""
    return lambda opener: TokenPrompt(tokenizer.empty_prompt + tokenizer.encode(opener, special_tokens=False))
