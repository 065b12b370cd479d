"""How each endpoint writes its choices, whole and streamed: OpenAI's shapes, and vLLM's fields where asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from server.api.schemas.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatFinishReason,
    Delta,
)
from server.api.schemas.completions import Completion, CompletionChoice
from server.api.schemas.logprobs import NO_DETAILS, Details, chat_logprobs, completion_logprobs, prompt_logprobs
from server.api.schemas.responses import Answer, AnswerChoice
from w2s_core.engine.events import PromptRead, TokenInfo
from w2s_core.types import FinishReason


class ResponseBuilder(Protocol):
    """How one endpoint writes its answers, of choices that it made itself; `extras` are fields not always there.

    `prompt` is given where the request asks for something of it, and in deltas only at the first of a choice. The last
    of `last_deltas` ends the choice, and has the `extras`.
    """

    id_prefix: str
    details: Details

    def whole(self, choices: list[Any], prompt: PromptRead | None, **fields: Any) -> Answer: ...
    def chunk(self, choices: list[Any], prompt: PromptRead | None = None, **fields: Any) -> Answer: ...
    def whole_choice(self, index: int, parts: ChoiceParts, reason: FinishReason, **extras: Any) -> AnswerChoice: ...
    def first_delta(self, index: int, prompt: PromptRead | None) -> AnswerChoice | None: ...
    def text_deltas(self, index: int, parts: ChoiceParts) -> Sequence[AnswerChoice]: ...
    def last_deltas(
        self, index: int, parts: ChoiceParts, reason: FinishReason, **extras: Any
    ) -> Sequence[AnswerChoice]: ...


@dataclass(slots=True)
class ChoiceParts:
    """What is said of a choice: some text, its tokens, and the prompt, of which `echoed` characters stand before it."""

    text: str = ""
    tokens: Sequence[TokenInfo] = ()
    prompt: PromptRead | None = None
    echoed: int = 0


class CompletionBuilder:
    id_prefix = "cmpl"

    def __init__(self, details: Details = NO_DETAILS) -> None:
        self.details = details

    def whole(self, choices: list[Any], prompt: PromptRead | None = None, **fields: Any) -> Completion:  # noqa: ARG002
        return Completion(object="text_completion", choices=choices, **fields)

    chunk = whole

    def whole_choice(self, index: int, parts: ChoiceParts, reason: FinishReason, **extras: Any) -> CompletionChoice:
        details, prompt = self.details, parts.prompt
        echo = prompt if details.echo else None
        if prompt is not None and details.prompt_logprobs is not None:
            extras["prompt_logprobs"] = prompt_logprobs(prompt.tokens, details.prompt_logprobs)
        text = (echo.text if echo else "") + parts.text
        return self._choice(index, text, parts, reason, echo, whole=True, **extras)

    def first_delta(self, index: int, prompt: PromptRead | None) -> CompletionChoice | None:
        if prompt is None:
            return None
        echo = prompt if self.details.echo else None
        return self._choice(index, echo.text if echo else "", ChoiceParts(prompt=prompt), None, echo)

    def text_deltas(self, index: int, parts: ChoiceParts) -> list[CompletionChoice]:
        return [self._choice(index, parts.text, parts, None)]

    def last_deltas(
        self, index: int, parts: ChoiceParts, reason: FinishReason, **extras: Any
    ) -> list[CompletionChoice]:
        return [self._choice(index, "", parts, reason, **extras)]

    def _choice(
        self,
        index: int,
        text: str,
        parts: ChoiceParts,
        reason: FinishReason | None,
        echo: PromptRead | None = None,
        *,
        whole: bool = False,
        **extras: Any,
    ) -> CompletionChoice:
        count, logprobs = self.details.logprobs, None
        if count is not None and (whole or echo or parts.tokens):
            shift = len(echo.text) if echo else parts.echoed
            told = completion_logprobs(parts.tokens, count, shift)
            logprobs = completion_logprobs(echo.tokens, count).followed_by(told) if echo else told
        if self.details.token_ids:
            extras["token_ids"] = [token.token for token in parts.tokens]
            if parts.prompt is not None:
                extras["prompt_token_ids"] = [token.token for token in parts.prompt.tokens]
        return CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=reason, **extras)


class ChatBuilder:
    id_prefix = "chatcmpl"

    def __init__(self, details: Details = NO_DETAILS) -> None:
        self.details = details

    def whole(self, choices: list[Any], prompt: PromptRead | None, **fields: Any) -> ChatCompletion:
        if prompt is not None and self.details.prompt_logprobs is not None:
            fields["prompt_logprobs"] = prompt_logprobs(prompt.tokens, self.details.prompt_logprobs)
        return ChatCompletion(object="chat.completion", choices=choices, **self._prompt_ids(prompt), **fields)

    def chunk(self, choices: list[Any], prompt: PromptRead | None = None, **fields: Any) -> ChatChunk:
        return ChatChunk(object="chat.completion.chunk", choices=choices, **self._prompt_ids(prompt), **fields)

    def _prompt_ids(self, prompt: PromptRead | None) -> dict[str, Any]:
        if prompt is None or not self.details.token_ids:
            return {}
        return {"prompt_token_ids": [token.token for token in prompt.tokens]}

    def whole_choice(self, index: int, parts: ChoiceParts, reason: FinishReason, **extras: Any) -> ChatChoice:
        message = AssistantMessage(role="assistant", content=parts.text, refusal=None)
        told = self._told(parts.tokens, whole=True)
        return ChatChoice(index=index, message=message, finish_reason=reason, **told, **extras)

    def first_delta(self, index: int, prompt: PromptRead | None) -> ChatChunkChoice:  # noqa: ARG002
        return self._delta(index, Delta(role="assistant", content=""), (), None)

    def text_deltas(self, index: int, parts: ChoiceParts) -> list[ChatChunkChoice]:
        return [self._delta(index, Delta(content=parts.text), parts.tokens, None)]

    def last_deltas(self, index: int, parts: ChoiceParts, reason: FinishReason, **extras: Any) -> list[ChatChunkChoice]:
        return [self._delta(index, Delta(), parts.tokens, reason, **extras)]

    def _delta(
        self, index: int, delta: Delta, tokens: Sequence[TokenInfo], reason: ChatFinishReason | None, **extras: Any
    ) -> ChatChunkChoice:
        return ChatChunkChoice(index=index, delta=delta, finish_reason=reason, **self._told(tokens), **extras)

    def _told(self, tokens: Sequence[TokenInfo], *, whole: bool = False) -> dict[str, Any]:
        """The fields about a choice's tokens."""
        count = self.details.logprobs
        told: dict[str, Any] = {"logprobs": None}
        if count is not None and (whole or tokens):
            told["logprobs"] = chat_logprobs(tokens, count)
        if self.details.token_ids:
            told["token_ids"] = [token.token for token in tokens]
        return told
