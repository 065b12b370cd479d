"""A pair or a reward model as a judge: its score of a whole answer, as it scores answers in a search."""

from __future__ import annotations

from statistics import fmean

from w2s_core.errors import ConfigurationError, ContextLengthError, PairContextLengthError, RequestError
from w2s_core.interfaces import Scorer
from w2s_core.judges.judge import DOES_NOT_FIT, Case, JudgeFunction, Opinion
from w2s_core.types import ChatPrompt, Hypothesis, Prompt, TextPrompt


def scorer_judge(key: str, scorer: Scorer) -> JudgeFunction:
    """Judges by `scorer`, in its unit (a pair's is nats): the mean over an answer's turns.

    An answer that ended by itself is scored with its end. Raises ConfigurationError, which names `key`, for prompts
    that the scorer cannot read.
    """

    async def score(case: Case, turn: int) -> float:
        prompt, ended = _prompt(case, turn), case.answer.finish_reasons[turn] == "stop"
        scorer.check(prompt, 1)
        async with scorer.open(prompt) as scoring:
            (found,) = await scoring.score([Hypothesis(text=case.answer.texts[turn], ended=ended)])
        return found.total

    async def judge(case: Case) -> Opinion:
        try:
            return Opinion(fmean([await score(case, turn) for turn in range(len(case.answer.texts))]))
        except (ContextLengthError, PairContextLengthError):
            return Opinion(None, DOES_NOT_FIT)
        except RequestError as error:
            raise ConfigurationError(f"{key}: {error}") from None

    return judge


def _prompt(case: Case, turn: int) -> Prompt:
    """What the model that answered has read before the answer to this turn."""
    if not case.prompt.chat:
        return TextPrompt(case.prompt.turns[0])
    return ChatPrompt(tuple(case.prompt.messages(case.answer.texts[:turn], case.system)))
