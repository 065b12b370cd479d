"""Builds response bodies from engine events: one complete body (`full_response`) or chunks (`ChunkStream`).

Both endpoints use it. A ResponseBuilder (`server/api/response_builders.py`) supplies what differs between them.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Any

from server.api.response_builders import ChoiceParts, ResponseBuilder
from server.api.schemas.base import StreamOptions
from server.api.schemas.responses import (
    BaseChoice,
    ChoiceGuidance,
    GuidanceSummary,
    ResponseBody,
    RoundGuidance,
    Usage,
    usage_of,
)
from w2s_core.engine.events import (
    ChoiceFinished,
    Event,
    PromptRead,
    RequestFinished,
    RoundFinished,
    TextCommitted,
    TokenInfo,
)
from w2s_core.types import FinishReason


@dataclass(frozen=True, slots=True)
class ResponseMetadata:
    """The fields that every chunk of a response repeats. `created` is in seconds since 1970."""

    id: str
    model: str
    created: int
    system_fingerprint: str | None = None

    @classmethod
    def new(cls, id_prefix: str, model: str, system_fingerprint: str | None = None) -> ResponseMetadata:
        """Metadata with a fresh id and the current time."""
        return cls(f"{id_prefix}-{uuid.uuid4().hex}", model, int(time.time()), system_fingerprint)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields under their names in the response."""
        return asdict(self)


def _finish_reason(event: ChoiceFinished) -> FinishReason:
    return event.hypothesis.finish_reason or "length"  # a finished choice always has one; its type cannot say so


def _choice_guidance(event: ChoiceFinished) -> dict[str, Any]:
    """The `guidance` field of a guided choice; no field for an unguided one."""
    return {"guidance": ChoiceGuidance.of(event.hypothesis)} if event.guided else {}


def _guidance_summary(event: RequestFinished) -> dict[str, Any]:
    """The `guidance` field of a guided response; no field for an unguided one."""
    return {"guidance": GuidanceSummary.of(event.guidance)} if event.guidance is not None else {}


async def full_response(
    events: AsyncIterator[Event], builder: ResponseBuilder, metadata: ResponseMetadata
) -> ResponseBody:
    """Collects all events into one response, with its choices ordered by index."""
    choices: list[BaseChoice] = []
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
                choice_tokens = [*tokens[event.index], *event.tokens]
                prompt = prompts.get(event.index)
                parts = ChoiceParts(event.hypothesis.text, choice_tokens, prompt, thoughts=event.thoughts)
                choice = builder.full_choice(event.index, parts, _finish_reason(event), **_choice_guidance(event))
                choices.append(choice)
            case RequestFinished():
                extras = {"usage": usage_of(event), **_guidance_summary(event)}
    choices.sort(key=lambda choice: choice.index)
    return builder.full_response(choices, prompts.get(0), **metadata.fields, **extras)


@dataclass(slots=True)
class ChunkStream:
    """Turns the engine's events into the chunks of one streamed response with `choices` choices.

    The guidance summary is known only when the request has finished. It goes into the chunk that finishes the last
    choice, so this chunk is held back until the engine's last event, which follows at once. A chunk of its own would
    break the many clients that read `choices[0]` of every chunk, and not every stream has a usage chunk.
    """

    builder: ResponseBuilder
    metadata: ResponseMetadata
    options: StreamOptions
    choices: int
    _opened: set[int] = field(default_factory=set)
    _prompts: dict[int, PromptRead] = field(default_factory=dict)
    _finished: int = 0
    _held_back: ChoiceFinished | None = None
    _usage: Usage = field(default_factory=lambda: Usage.of(0, 0))

    async def chunks(self, events: AsyncIterator[Event]) -> AsyncIterator[ResponseBody]:
        """Yields chunks in OpenAI's order: for each choice its role (chat), its text and its finish reason; then the
        usage, if requested. The rounds of a search have chunks of their own, each before the text that it commits."""
        async for event in events:
            for chunk in self._chunks_of(event):
                yield chunk

    def _chunks_of(self, event: Event) -> list[ResponseBody]:
        if isinstance(event, RequestFinished):
            return self._end_response(event)
        if isinstance(event, PromptRead):
            self._prompts |= dict.fromkeys(event.choices, event)
            return [chunk for index in event.choices for chunk in self._open_choice(index)]
        if isinstance(event, RoundFinished):
            return [self._chunk([], guidance=RoundGuidance.of(event))]
        if isinstance(event, TextCommitted):  # the chunk with the role precedes the text and must not count it
            self._usage = Usage.of(event.prompt_tokens, self._usage.completion_tokens)
        opening = self._open_choice(event.index)
        if isinstance(event, TextCommitted):
            self._usage = Usage.of(event.prompt_tokens, event.completion_tokens)
            parts = ChoiceParts(event.text, event.tokens, echo_length=self._echo_length(event.index))
            deltas = self.builder.thought_deltas if event.thought else self.builder.text_deltas
            return [*opening, *(self._chunk([choice]) for choice in deltas(event.index, parts))]
        self._finished += 1
        if self._finished == self.choices:
            self._held_back = event
            return opening
        return [*opening, *self._finish_choice(event)]

    def _open_choice(self, index: int) -> list[ResponseBody]:
        """The first chunk of a choice, unless it was sent already or there is nothing to send."""
        if index in self._opened:
            return []
        self._opened.add(index)
        prompt = self._prompts.get(index)
        first = self.builder.first_delta(index, prompt)
        return [] if first is None else [self._chunk([first], prompt)]

    def _echo_length(self, index: int) -> int:
        return len(self._prompts[index].text) if self.builder.output_options.echo else 0

    def _finish_choice(self, event: ChoiceFinished, **extras: Any) -> list[ResponseBody]:
        """The last chunks of a choice; `extras` are fields of the very last one."""
        parts = ChoiceParts(tokens=event.tokens, echo_length=self._echo_length(event.index))
        reason = _finish_reason(event)
        *others, last = self.builder.final_deltas(event.index, parts, reason, **_choice_guidance(event))
        return [*(self._chunk([choice]) for choice in others), self._chunk([last], **extras)]

    def _end_response(self, event: RequestFinished) -> list[ResponseBody]:
        self._usage = usage_of(event)
        held_back = self._held_back
        chunks = [] if held_back is None else self._finish_choice(held_back, **_guidance_summary(event))
        if self.options.include_usage:
            chunks.append(self.builder.chunk([], **self.metadata.fields, usage=self._usage))
        return chunks

    def _chunk(self, choices: list[BaseChoice], prompt: PromptRead | None = None, **extras: Any) -> ResponseBody:
        if self.options.include_usage:
            extras["usage"] = self._usage if self.options.continuous_usage_stats and choices else None
        return self.builder.chunk(choices, prompt, **self.metadata.fields, **extras)
