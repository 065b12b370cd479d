"""What a judge is: a function of one answer, or of an answer and the baseline's, that runs while a context is entered.

A pointwise judge that counts words:

    async def words(case: Case) -> Opinion:
        return Opinion(float(len(case.answer.texts[-1].split())))
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeAlias

from w2s_core.evaluation.records import AnswerRecord, EvalPrompt

DOES_NOT_FIT = "it does not fit the judge's context"


@dataclass(frozen=True, slots=True)
class Case:
    """An answer to judge. `system`: the system message of chats that have none of their own.

    `baseline`: the baseline's answer to the same prompt and seed, for a judge that compares, else None.
    """

    prompt: EvalPrompt
    answer: AnswerRecord
    system: str | None = None
    baseline: AnswerRecord | None = None


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge says of a case. A pointwise judge's `value` is a score, higher is better.

    That of one that compares is 1 where the answer beats the baseline's, 0 where it loses, ½ for a tie. None where
    there is none, for this `reason`. `said`: what an LLM judge wrote.
    """

    value: float | None
    reason: str = ""
    said: tuple[str, ...] = ()


JudgeFunction: TypeAlias = Callable[[Case], Awaitable[Opinion]]


@dataclass(frozen=True, slots=True)
class Judge:
    """A judge by its name in the experiment. `pairwise`: it compares, else it is pointwise.

    `options` are the configuration as a text: other options are another judge, whose opinions are asked anew.
    """

    name: str
    pairwise: bool
    options: str
    start: AbstractAsyncContextManager[JudgeFunction]
