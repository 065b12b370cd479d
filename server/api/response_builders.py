"""Response builders: how each endpoint writes its choices, complete and streamed, with OpenAI's fields and vLLM's
optional ones."""

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
from server.api.schemas.logprobs import (
    TEXT_ONLY,
    OutputOptions,
    chat_logprobs,
    completion_logprobs,
    prompt_logprobs,
)
from server.api.schemas.responses import BaseChoice, ResponseBody
from w2s_core.engine.events import PromptRead, TokenInfo
from w2s_core.types import FinishReason


class ResponseBuilder(Protocol):
    """Builds the responses, chunks and choices of one endpoint. A builder gets only choices that it built itself.

    `extras` and `fields` are fields that not every response has, such as `guidance`. `prompt` is given only when the
    request asks for an output about it, and in a stream only with a choice's first delta.
    """

    id_prefix: str
    output_options: OutputOptions

    def full_response(self, choices: list[Any], prompt: PromptRead | None, **fields: Any) -> ResponseBody:
        """The complete response."""
        ...

    def chunk(self, choices: list[Any], prompt: PromptRead | None = None, **fields: Any) -> ResponseBody:
        """A chunk of a streamed response."""
        ...

    def full_choice(self, index: int, parts: ChoiceParts, reason: FinishReason, **extras: Any) -> BaseChoice:
        """A choice of a complete response."""
        ...

    def first_delta(self, index: int, prompt: PromptRead | None) -> BaseChoice | None:
        """What a stream sends of a choice before its text, such as its role or the echoed prompt; None for nothing."""
        ...

    def text_deltas(self, index: int, parts: ChoiceParts) -> Sequence[BaseChoice]:
        """The deltas for more text of a choice; none if a parser holds the text back."""
        ...

    def thought_deltas(self, index: int, parts: ChoiceParts) -> Sequence[BaseChoice]:
        """The deltas for more thoughts of a choice, which `parts` has as its text."""
        ...

    def final_deltas(self, index: int, parts: ChoiceParts, reason: FinishReason, **extras: Any) -> Sequence[BaseChoice]:
        """The deltas that end a choice, at least one; the last has the finish reason and the `extras`."""
        ...


@dataclass(slots=True)
class ChoiceParts:
    """What a choice or delta is built from: its text, its tokens, and the prompt if the request asks for it.

    `echo_length` is the number of characters of an echoed prompt that precede the text. `thoughts` are a reasoning
    model's, "" if it has not thought; None for any other model.
    """

    text: str = ""
    tokens: Sequence[TokenInfo] = ()
    prompt: PromptRead | None = None
    echo_length: int = 0
    thoughts: str | None = None

    @property
    def reasoning_fields(self) -> dict[str, Any]:
        """The fields of a message that tell its thoughts; none if the model is no reasoning model."""
        return {} if self.thoughts is None else {"reasoning_content": self.thoughts or None}


class CompletionBuilder:
    """Builds the responses of `POST /v1/completions`. A complete one has vLLM's fields, null if not asked for."""

    id_prefix = "cmpl"

    def __init__(self, output_options: OutputOptions = TEXT_ONLY) -> None:
        self.output_options = output_options

    def full_response(self, choices: list[Any], prompt: PromptRead | None = None, **fields: Any) -> Completion:  # noqa: ARG002
        return Completion(object="text_completion", choices=choices, **fields)

    chunk = full_response  # both have the same format

    def full_choice(self, index: int, parts: ChoiceParts, reason: FinishReason, **extras: Any) -> CompletionChoice:
        options, prompt = self.output_options, parts.prompt
        extras = {"prompt_logprobs": None, "prompt_token_ids": None, **extras}
        echo = prompt if options.echo else None
        if prompt is not None and options.prompt_logprobs is not None:
            extras["prompt_logprobs"] = prompt_logprobs(prompt.tokens, options.prompt_logprobs)
        text = (echo.text if echo else "") + parts.text
        return self._choice(index, text, parts, reason, echo, full=True, **extras)

    def first_delta(self, index: int, prompt: PromptRead | None) -> CompletionChoice | None:
        if prompt is None:
            return None
        echo = prompt if self.output_options.echo else None
        return self._choice(index, echo.text if echo else "", ChoiceParts(prompt=prompt), None, echo)

    def text_deltas(self, index: int, parts: ChoiceParts) -> list[CompletionChoice]:
        return [self._choice(index, parts.text, parts, None)]

    thought_deltas = text_deltas  # a completion is one text

    def final_deltas(
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
        full: bool = False,
        **extras: Any,
    ) -> CompletionChoice:
        count, logprobs = self.output_options.logprobs, None
        if count is not None and (full or echo or parts.tokens):
            text_start = len(echo.text) if echo else parts.echo_length
            logprobs = completion_logprobs(parts.tokens, count, text_start)
            if echo:
                logprobs = completion_logprobs(echo.tokens, count).concat(logprobs)
        if self.output_options.token_ids:
            extras["token_ids"] = [token.token for token in parts.tokens]
            if parts.prompt is not None:
                extras["prompt_token_ids"] = [token.token for token in parts.prompt.tokens]
        return CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=reason, **extras)


class ChatBuilder:
    """Builds the responses of `POST /v1/chat/completions` for requests without tools, with vLLM's fields as well."""

    id_prefix = "chatcmpl"

    def __init__(self, output_options: OutputOptions = TEXT_ONLY) -> None:
        self.output_options = output_options

    def full_response(self, choices: list[Any], prompt: PromptRead | None, **fields: Any) -> ChatCompletion:
        fields = {"prompt_logprobs": None, "prompt_token_ids": None, **fields, **self._prompt_ids(prompt)}
        if prompt is not None and self.output_options.prompt_logprobs is not None:
            fields["prompt_logprobs"] = prompt_logprobs(prompt.tokens, self.output_options.prompt_logprobs)
        return ChatCompletion(object="chat.completion", choices=choices, **fields)

    def chunk(self, choices: list[Any], prompt: PromptRead | None = None, **fields: Any) -> ChatChunk:
        return ChatChunk(object="chat.completion.chunk", choices=choices, **self._prompt_ids(prompt), **fields)

    def _prompt_ids(self, prompt: PromptRead | None) -> dict[str, Any]:
        if prompt is None or not self.output_options.token_ids:
            return {}
        return {"prompt_token_ids": [token.token for token in prompt.tokens]}

    def full_choice(self, index: int, parts: ChoiceParts, reason: FinishReason, **extras: Any) -> ChatChoice:
        message = AssistantMessage(role="assistant", content=parts.text, refusal=None, **parts.reasoning_fields)
        token_fields = self._token_fields(parts.tokens, full=True)
        return ChatChoice(index=index, message=message, finish_reason=reason, **token_fields, **extras)

    def first_delta(self, index: int, prompt: PromptRead | None) -> ChatChunkChoice:  # noqa: ARG002
        return self._delta(index, Delta(role="assistant", content=""), (), None)

    def text_deltas(self, index: int, parts: ChoiceParts) -> list[ChatChunkChoice]:
        return [self._delta(index, Delta(content=parts.text), parts.tokens, None)]

    def thought_deltas(self, index: int, parts: ChoiceParts) -> list[ChatChunkChoice]:
        return [self._delta(index, Delta(reasoning_content=parts.text), parts.tokens, None)]

    def final_deltas(
        self, index: int, parts: ChoiceParts, reason: FinishReason, **extras: Any
    ) -> list[ChatChunkChoice]:
        return [self._delta(index, Delta(), parts.tokens, reason, **extras)]

    def _delta(
        self, index: int, delta: Delta, tokens: Sequence[TokenInfo], reason: ChatFinishReason | None, **extras: Any
    ) -> ChatChunkChoice:
        return ChatChunkChoice(index=index, delta=delta, finish_reason=reason, **self._token_fields(tokens), **extras)

    def _token_fields(self, tokens: Sequence[TokenInfo], *, full: bool = False) -> dict[str, Any]:
        """The fields `logprobs` and `token_ids` of a choice. In a delta without tokens, `logprobs` is null."""
        count = self.output_options.logprobs
        fields: dict[str, Any] = {"logprobs": None}
        if count is not None and (full or tokens):
            fields["logprobs"] = chat_logprobs(tokens, count)
        if self.output_options.token_ids:
            fields["token_ids"] = [token.token for token in tokens]
        return fields
