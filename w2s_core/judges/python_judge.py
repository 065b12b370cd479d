"""A Python function of a prompt and an answer as a judge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import isfinite
from statistics import fmean
from typing import Any

from w2s_core.errors import ConfigurationError
from w2s_core.judges.judge import Case, JudgeFunction, Opinion


def python_judge(key: str, function: Callable[[str, str], Any]) -> JudgeFunction:
    """Judges by `function(prompt, answer)`: the mean over an answer's turns, each with what the user said in it.

    It is called in a thread, one call at a time. Raises ConfigurationError, which names `key`, where it raises or
    returns something that is no finite number.
    """
    calling = asyncio.Lock()

    async def score(prompt: str, answer: str) -> float:
        try:
            async with calling:
                value = float(await asyncio.to_thread(function, prompt, answer))
        except Exception as error:
            raise ConfigurationError(f"{key}: the function raised {type(error).__name__}: {error}") from error
        if not isfinite(value):
            raise ConfigurationError(f"{key}: the function returned {value}, which is no finite number.")
        return value

    async def judge(case: Case) -> Opinion:
        prefix = case.prompt.answer_prefix
        turns = zip(case.prompt.turns, case.answer.texts, strict=True)
        return Opinion(fmean([await score(prompt, prefix + text) for prompt, text in turns]))

    return judge
