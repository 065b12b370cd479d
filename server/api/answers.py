"""Response bodies from engine events, whole or streamed. The order of chunks is the same for both endpoints."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from server.api.response_builders import ChoiceParts, ResponseBuilder
from server.api.schemas.base import StreamOptions
from server.api.schemas.responses import Answer, AnswerChoice, ChoiceGuidance, GuidanceSummary, Usage, usage_of
from w2s_core.engine.events import ChoiceFinished, Event, PromptRead, RequestFinished, TextCommitted, TokenInfo
from w2s_core.types import FinishReason


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every chunk of an answer repeats; `created` in seconds since 1970."""

    id: str
    model: str
    created: int

    @classmethod
    def new(cls, prefix: str, model: str) -> Envelope:
        return cls(f"{prefix}-{uuid.uuid4().hex}", model, int(time.time()))

    @property
    def fields(self) -> dict[str, Any]:
        return {"id": self.id, "model": self.model, "created": self.created, "system_fingerprint": None}


def _reason(event: ChoiceFinished) -> FinishReason:
    return event.hypothesis.finish_reason or "length"  # a finished choice always has one; its type cannot say so


def _score(event: ChoiceFinished) -> dict[str, Any]:
    """The extra field of a guided choice; a plain one has none."""
    return {"guidance": ChoiceGuidance.of(event.hypothesis)} if event.guided else {}


def _report(event: RequestFinished) -> dict[str, Any]:
    """The extra field of a guided answer; a plain one has none."""
    return {"guidance": GuidanceSummary.of(event.guidance)} if event.guidance is not None else {}


async def whole_answer(events: AsyncIterator[Event], shape: ResponseBuilder, envelope: Envelope) -> Answer:
    """The answer in one piece, choices by index."""
    choices: list[AnswerChoice] = []
    extras: dict[str, Any] = {}
    tokens: defaultdict[int, list[TokenInfo]] = defaultdict(list)
    prompts: dict[int, PromptRead] = {}
    async for event in events:
        match event:
            case PromptRead():
                prompts |= dict.fromkeys(event.choices, event)
            case TextCommitted():
                tokens[event.index] += event.tokens
            case ChoiceFinished():
                told = [*tokens[event.index], *event.tokens]
                parts = ChoiceParts(event.hypothesis.text, told, prompts.get(event.index))
                choices.append(shape.whole_choice(event.index, parts, _reason(event), **_score(event)))
            case RequestFinished():
                extras = {"usage": usage_of(event), **_report(event)}
    choices.sort(key=lambda choice: choice.index)
    return shape.whole(choices, prompts.get(0), **envelope.fields, **extras)


@dataclass(slots=True)
class Chunks:
    """The chunks of one streamed answer of `choices` choices.

    The search's own report is known only at the very end. It goes into the chunk that finishes the last choice, and not
    into the usage chunk or one of its own: that chunk exists in every stream, and many clients read `choices[0]` of
    whatever comes. So the last choice's end is held back until the engine's last event, which follows at once.
    """

    shape: ResponseBuilder
    envelope: Envelope
    options: StreamOptions
    choices: int
    _opened: set[int] = field(default_factory=set)
    _prompts: dict[int, PromptRead] = field(default_factory=dict)
    _finished: int = 0
    _held: ChoiceFinished | None = None
    _usage: Usage = field(default_factory=lambda: Usage.of(0, 0))

    async def of(self, events: AsyncIterator[Event]) -> AsyncIterator[Answer]:
        """OpenAI's order: per choice its role (chat), its text, its end; then the usage, if asked for."""
        async for event in events:
            for chunk in self._chunks(event):
                yield chunk

    def _chunks(self, event: Event) -> list[Answer]:
        if isinstance(event, RequestFinished):
            return self._end(event)
        if isinstance(event, PromptRead):
            self._prompts |= dict.fromkeys(event.choices, event)
            return [chunk for index in event.choices for chunk in self._opening(index)]
        if isinstance(event, TextCommitted):  # the chunk with the role is sent before the text, and counts none of it
            self._usage = Usage.of(event.prompt_tokens, self._usage.completion_tokens)
        opening = self._opening(event.index)
        if isinstance(event, TextCommitted):
            self._usage = Usage.of(event.prompt_tokens, event.completion_tokens)
            parts = ChoiceParts(event.text, event.tokens, echoed=self._echoed(event.index))
            return [*opening, *(self._chunk(choice) for choice in self.shape.text_deltas(event.index, parts))]
        self._finished += 1
        if self._finished == self.choices:
            self._held = event
            return opening
        return [*opening, *self._last(event)]

    def _opening(self, index: int) -> list[Answer]:
        if index in self._opened:
            return []
        self._opened.add(index)
        prompt = self._prompts.get(index)
        first = self.shape.first_delta(index, prompt)
        return [] if first is None else [self._chunk(first, prompt)]

    def _echoed(self, index: int) -> int:
        return len(self._prompts[index].text) if self.shape.details.echo else 0

    def _last(self, event: ChoiceFinished, **extras: Any) -> list[Answer]:
        parts = ChoiceParts(tokens=event.tokens, echoed=self._echoed(event.index))
        *others, last = self.shape.last_deltas(event.index, parts, _reason(event), **_score(event))
        return [*(self._chunk(choice) for choice in others), self._chunk(last, **extras)]

    def _end(self, event: RequestFinished) -> list[Answer]:
        self._usage = usage_of(event)
        chunks = [] if self._held is None else self._last(self._held, **_report(event))
        if self.options.include_usage:
            chunks.append(self.shape.chunk([], **self.envelope.fields, usage=self._usage))
        return chunks

    def _chunk(self, choice: AnswerChoice, prompt: PromptRead | None = None, **extras: Any) -> Answer:
        if self.options.continuous_usage_stats:
            extras["usage"] = self._usage
        elif self.options.include_usage:
            extras["usage"] = None
        return self.shape.chunk([choice], prompt, **self.envelope.fields, **extras)
