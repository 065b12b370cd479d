"""Log-probabilities in responses: OpenAI's two formats, and vLLM's format for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from server.api.schemas.responses import ResponseModel
from w2s_core.engine.events import TokenInfo
from w2s_core.types import MIN_LOGPROB, TokenText

TopLogprobs = Annotated[int, Field(ge=0, le=20)]


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What a response contains besides the text.

    `logprobs` and `prompt_logprobs` are numbers of alternatives per token; None means no log-probabilities.
    """

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    token_ids: bool = False

    def request_fields(self) -> dict[str, Any]:
        """The corresponding fields of a GenerationRequest. An echo with log-probabilities includes the prompt's."""
        counts = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return {
            "with_tokens": self.logprobs is not None or self.token_ids,
            "with_prompt": self.echo or self.token_ids or self.prompt_logprobs is not None,
            "needs_token_ids": self.token_ids,
            "prompt_logprobs": max((count for count in counts if count is not None), default=None),
        }


TEXT_ONLY = OutputOptions()


class CompletionLogprobs(ResponseModel):
    """OpenAI's format for completions: four parallel lists, one entry per token.

    `text_offset` counts characters of the choice's text. A token that is part of a character is written
    `bytes:\\xe2\\x82`, with the offset of that character. The first token of an echoed prompt has null values.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    def concat(self, other: CompletionLogprobs) -> CompletionLogprobs:
        """These tokens and then the `other` ones."""
        return CompletionLogprobs(
            **{name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields}
        )


class TopLogprob(ResponseModel):
    """An alternative token. `bytes` is null for special tokens, which are not text."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer with its most likely alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(ResponseModel):
    """OpenAI's format for chat: one entry per token."""

    content: list[TokenLogprob]
    refusal: None = None


class PromptLogprob(ResponseModel):
    """A token at one position of the prompt (vLLM's format). `rank` 1 is the most likely token there."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


def completion_logprobs(tokens: Sequence[TokenInfo], count: int, text_start: int = 0) -> CompletionLogprobs:
    """The tokens in OpenAI's format for completions, with `count` alternatives each.

    `text_start` is the number of characters in front of the text that the tokens' offsets refer to.
    """
    return CompletionLogprobs(
        tokens=[_completion_text(token.token_text) for token in tokens],
        token_logprobs=[None if token.logprob is None else _finite(token.logprob) for token in tokens],
        top_logprobs=[_logprobs_by_text(token, count) for token in tokens],
        text_offset=[text_start + token.offset for token in tokens],
    )


def chat_logprobs(tokens: Sequence[TokenInfo], count: int) -> ChatLogprobs:
    """The tokens in OpenAI's format for chat, with `count` alternatives each."""
    content = []
    for token in tokens:
        top = [_top_logprob(text, nats) for _, text, nats in token.alternatives[:count]]
        own = _top_logprob(token.token_text, MIN_LOGPROB if token.logprob is None else token.logprob)
        content.append(TokenLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top))
    return ChatLogprobs(content=content, refusal=None)


def prompt_logprobs(tokens: Sequence[TokenInfo], count: int) -> PromptLogprobs:
    """For each token a dictionary by token id: its alternatives and the token itself. None for the first token."""
    return [None if token.logprob is None else _ranked_tokens(token, token.logprob, count) for token in tokens]


def _ranked_tokens(token: TokenInfo, nats: float, count: int) -> dict[str, PromptLogprob]:
    own = {token.token: (nats, token.rank or 1, token.token_text)}
    others = {other: (value, rank, text) for rank, (other, text, value) in enumerate(token.alternatives[:count], 1)}
    return {
        str(key): PromptLogprob(logprob=_finite(value), rank=rank, decoded_token=_escaped(text))
        for key, (value, rank, text) in (own | others).items()
    }


def _logprobs_by_text(token: TokenInfo, count: int) -> dict[str, float] | None:
    """The alternatives and the token itself, by text. Of tokens with the same text the more likely one counts."""
    if token.logprob is None:
        return None
    logprobs: dict[str, float] = {}
    for _, text, nats in token.alternatives[:count]:
        logprobs.setdefault(_completion_text(text), _finite(nats))
    logprobs.setdefault(_completion_text(token.token_text), _finite(token.logprob))
    return logprobs


def _top_logprob(token_text: TokenText, nats: float) -> TopLogprob:
    data = None if token_text.bytes is None else list(token_text.bytes)
    return TopLogprob(token=_escaped(token_text), logprob=_finite(nats), bytes=data)


def _finite(nats: float) -> float:
    return max(nats, MIN_LOGPROB)


def _completion_text(token_text: TokenText) -> str:
    return _escaped(token_text) if token_text.text is not None else f"bytes:{_escaped(token_text)}"


def _escaped(token_text: TokenText) -> str:
    """The token's text, or for a part of a character its bytes, as `\\xe2\\x82`."""
    if token_text.text is not None:
        return token_text.text
    return "".join(f"\\x{byte:02x}" for byte in token_text.bytes or b"")
