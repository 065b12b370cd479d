"""Samples a reasoning model's thoughts once, plainly, before the answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from w2s_core.engine.events import ChoiceFinished, TextCommitted, TokenInfo
from w2s_core.engine.observer import RequestObserver
from w2s_core.engine.output import ChoiceStreamer, TokenStreamer
from w2s_core.engine.planning import Plan
from w2s_core.engine.thoughts import ThoughtPlan
from w2s_core.text.detokenizer import AnswerDetokenizer
from w2s_core.text.reasoning import ReasoningParser, ReasoningPart, ReasoningState
from w2s_core.types import Hypothesis, ProviderUsage, SamplingParams, Tokens


class ThoughtSplitter:
    """Splits the streamed text of one choice into thoughts and answer.

    `thoughts` and `answer` are what has been streamed so far. `pending` are tokens that no event has carried yet,
    because they have no text of either.
    """

    def __init__(self, plan: ThoughtPlan) -> None:
        self.thoughts = self.answer = ""
        self.pending: list[TokenInfo] = []
        self._parser = ReasoningParser(plan.format, plan.state)

    @property
    def answer_start(self) -> int | None:
        """The number of characters before the answer, None as long as it has not begun behind thoughts."""
        return self._parser.answer_start

    @property
    def has_begun(self) -> bool:
        """Whether there are thoughts, be they empty."""
        return self._parser.state in (ReasoningState.THOUGHTS, ReasoningState.BLANKS)

    def split(self, event: TextCommitted) -> list[TextCommitted]:
        """The events for a piece of text; the first of them carries the tokens."""
        self.pending += event.tokens
        return self._events(event.index, self._parser.feed(event.text))

    def finish(self, index: int) -> list[TextCommitted]:
        """The events for the rest, when no more text follows."""
        return self._events(index, self._parser.finish())

    def _events(self, index: int, parts: list[ReasoningPart]) -> list[TextCommitted]:
        events = []
        for thought, text in parts:
            events.append(TextCommitted(index, text, tuple(self.pending), thought=thought))
            self.pending = []
            if thought:
                self.thoughts += text
            else:
                self.answer += text
        return events


class ThoughtSampler:
    """Samples the thoughts of one answer to a plan's prompt, from the hypothesis `start`, for choice `index`.

    Stop strings, grammars and token masks are for the answer, so they do not hold here. What is drawn behind the
    thoughts, to see that they are over, is thrown away: the answer is drawn anew, by the caller.

    `tokens` are all that were kept, markers and blanks included, and `overhang` is text of theirs of which the last
    token holds only a part, and which is not among them. `ended` is the whole hypothesis if the answer has ended inside
    its thoughts. `length` is in tokens, an EOS included.
    """

    def __init__(self, plan: Plan, start: Hypothesis, index: int, observer: RequestObserver) -> None:
        assert plan.thoughts is not None
        self.splitter = ThoughtSplitter(plan.thoughts)
        self.tokens: Tokens = ()
        self.overhang = ""
        self.ended: Hypothesis | None = None
        self.length = self.sampled_tokens = self.cached_tokens = 0
        self.provider_usage = ProviderUsage()
        self._plan = plan
        self._start = start
        self._observer = observer
        self._sampling = _sampling_of_thoughts(plan.sampling)
        self._prompt = plan.prompt if plan.large.exposes_token_ids else ()
        self._parser = ReasoningParser(plan.thoughts.format, plan.thoughts.state)
        self._streamer = (
            TokenStreamer(index, self._sampling, plan.large.decoder, self._prompt)
            if plan.with_tokens
            else ChoiceStreamer(index, ())
        )

    async def events(self) -> AsyncGenerator[TextCommitted]:
        """Samples and streams the thoughts; the attributes then hold the result."""
        plan, thoughts, y, state = self._plan, self._plan.thoughts, self._start, self._parser.state
        assert thoughts is not None
        if state is ReasoningState.ANSWER or not plan.budget:
            return
        async with thoughts.thinker.open(plan.prompt, self._sampling, rows=1) as proposals:
            self._observer.count_proposals(proposals)
            growing = self._observer.trace_sampling(proposals.grow(y, length=plan.budget))
            async with aclosing(growing):
                read = 0
                async for y in growing:
                    self._parser.feed(y.text[read:])
                    state, read = self._parser.state, len(y.text)
                    if state is ReasoningState.ANSWER:
                        break
                    if state is not ReasoningState.START:
                        self.length = y.length
                        for event in self._split(self._streamer.commit([y])):
                            yield event
            self.sampled_tokens, self.cached_tokens = proposals.sampled_tokens, proposals.cached_tokens
            self.provider_usage = proposals.provider_usage
        for event in self._finish(y):
            yield event

    def _finish(self, y: Hypothesis) -> list[TextCommitted]:
        state = self._parser.state
        if state is ReasoningState.THOUGHTS:
            self.ended = y = replace(y, finish_reason=y.finish_reason or "length")
        elif self._parser.thoughts_end is None:  # there were none
            self.length = 0
            return []
        else:
            y = self._without_answer(y)
        self.tokens, self.length = y.tokens, y.length
        events = self._split(self._streamer.finish(y, guided=False))
        return [*events, *self.splitter.finish(self._streamer.index)]

    def _without_answer(self, y: Hypothesis) -> Hypothesis:
        """The hypothesis without the tokens behind its thoughts and the blanks that follow them."""
        end, start = self._parser.thoughts_end, self._parser.answer_start
        assert end is not None
        start = len(y.text) if start is None else start
        detokenizer = AnswerDetokenizer(self._plan.large.decoder.verbatim, self._prompt)
        kept = detokenizer.covering(y.tokens, end)
        length = len(detokenizer.text(kept))
        if length > start:
            kept = kept[:-1]
            self.overhang = y.text[len(detokenizer.text(kept)) : start]
        for size in range(len(kept) + 1, len(y.tokens) + 1):
            longer = len(detokenizer.text(y.tokens[:size]))
            if longer > start:
                break
            if longer > length:  # else it is the first part of a character, which is the answer's
                kept, length = y.tokens[:size], longer
        return replace(y, tokens=kept, text=y.text[:start], ended=False, ending=None, finish_reason=None, parent=None)

    def _split(self, events: list[TextCommitted] | list[TextCommitted | ChoiceFinished]) -> list[TextCommitted]:
        split = []
        for event in events:
            if isinstance(event, TextCommitted):
                split += self.splitter.split(event)
            else:
                self.splitter.pending += event.tokens
        return split


def _sampling_of_thoughts(sampling: SamplingParams) -> SamplingParams:
    """What of a request's sampling holds for thoughts; the markers around them, which may be special tokens, show."""
    return replace(
        sampling,
        stop=(),
        stop_token_ids=(),
        allowed_token_ids=None,
        grammar=None,
        include_stop_str_in_output=False,
        skip_special_tokens=False,
    )
