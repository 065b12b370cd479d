"""A search whose answers may outgrow the pair's context: such an answer ends there, as if it were of full length.

How many tokens of a pair an answer takes is known only by its text, so a candidate may turn out too long for the pair
after it has been sampled. It is cut to what the pair can read and takes part in its round with finish reason "length".
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from w2s_core.errors import PairContextLengthError, UpstreamContextLengthError
from w2s_core.interfaces import Decoder, Proposer, Scoring
from w2s_core.search.cbs import search
from w2s_core.search.selection import Selector
from w2s_core.text.detokenizer import AnswerDetokenizer
from w2s_core.types import Hypothesis, Round, SamplingParams, Tokens

_MARGIN = 0.98  # an answer's parts need not take tokens in proportion


class AnswerCutter:
    """Cuts answers to `prompt` at a token. `decoder` is that of the large model's tokens."""

    def __init__(self, decoder: Decoder, prompt: Tokens, sampling: SamplingParams) -> None:
        self._decoder = decoder
        self._shown_decoder = decoder if sampling.skip_special_tokens else decoder.verbatim
        self._prompt = prompt

    def cut(self, y: Hypothesis, length: int) -> Hypothesis:
        """The answer's first `length` tokens, with finish reason "length"."""
        tokens = y.tokens[:length]
        shown, scored = (
            AnswerDetokenizer(decoder, self._prompt).text(tokens) for decoder in (self._shown_decoder, self._decoder)
        )
        shorter = replace(
            y,
            tokens=tokens,
            text=shown,
            logprobs=y.logprobs[:length],
            alternatives=y.alternatives[:length],
            ended=False,
            ending=None,
            finish_reason="length",
            scored_as=None,
        )
        return shorter if scored == shown else replace(shorter, scored_as=replace(shorter, text=scored))


class _Replaying:
    """A proposer that remembers its last successors, and can be told to propose others in their place."""

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer
        self.latest: Sequence[Hypothesis] | None = None  # None while some are being drawn
        self.replacement: list[Hypothesis] | None = None

    async def propose(self, beam: Sequence[Hypothesis], *, k: int, length: int) -> list[Hypothesis]:
        successors, self.replacement, self.latest = self.replacement, None, None
        if successors is None:
            successors = await self._proposer.propose(beam, k=k, length=length)
        self.latest = successors
        return successors


async def search_within_pair_context(
    proposer: Proposer,
    scoring: Scoring,
    beam: Sequence[Hypothesis],
    cutter: AnswerCutter,
    *,
    w: int,
    k: int,
    length: int,
    budget: int,
    selector: Selector | None = None,
) -> AsyncGenerator[Round]:
    """As `search`. If a provider alone can tell that an answer is too long for the pair, the search ends before it."""
    replaying, began, selector = _Replaying(proposer), False, selector or Selector()
    while True:
        try:
            rounds = search(replaying, scoring, beam, w=w, k=k, length=length, budget=budget, selector=selector)
            async with aclosing(rounds):
                async for round_ in rounds:
                    beam, budget, began = round_.beam, budget - length, True
                    yield round_
        except PairContextLengthError as error:
            assert replaying.latest is not None
            replaying.replacement = [_fitted(y, error, cutter) for y in replaying.latest]
            if replaying.replacement == replaying.latest:  # cut back to the beam, some are still too long
                if not began:
                    raise
                return
        except UpstreamContextLengthError:
            if replaying.latest is None or not began:  # the large model's own context, or not one answer fits
                raise
            return
        else:
            return


def _fitted(y: Hypothesis, error: PairContextLengthError, cutter: AnswerCutter) -> Hypothesis:
    """The answer, cut if it is one of those that are too long for the pair."""
    tokens = error.lengths.get((y.as_scored.text, y.ended), 0)
    if tokens <= error.room:
        return y
    shorter = min(len(y.tokens) - 1, int(len(y.tokens) * error.room / tokens * _MARGIN))
    return cutter.cut(y, max(shorter, len(y.parent.tokens) if y.parent else 0))
