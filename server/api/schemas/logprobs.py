"""Log-probabilities as clients get them: OpenAI's two shapes, and vLLM's of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from server.api.schemas.responses import Sent
from w2s_core.engine.events import TokenInfo
from w2s_core.types import TokenText

Alternatives = Annotated[int, Field(ge=0, le=20)]
LEAST = -9999.0  # JSON knows no infinity; OpenAI's number for "never"


@dataclass(frozen=True, slots=True)
class Details:
    """What a request wants to know beside the text; numbers are of alternatives at each place, None = not asked."""

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    token_ids: bool = False

    @property
    def asked(self) -> dict[str, Any]:
        """The engine's terms: fields of GenerationRequest. An echo with log-probabilities has the prompt's too."""
        numbers = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return {
            "with_tokens": self.logprobs is not None or self.token_ids,
            "with_prompt": self.echo or self.token_ids or self.prompt_logprobs is not None,
            "token_ids": self.token_ids,
            "prompt_logprobs": max((n for n in numbers if n is not None), default=None),
        }


NO_DETAILS = Details()


class CompletionLogprobs(Sent):
    """Four parallel lists. `text_offset` counts characters of the choice's text. Tokens that hold a part of a character
    are written `bytes:\\xe2\\x82`, at that character's offset. The first token of an echoed prompt has nulls."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    def followed_by(self, other: CompletionLogprobs) -> CompletionLogprobs:
        return CompletionLogprobs(
            **{name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields}
        )


class TopLogprob(Sent):
    """`bytes` is null for special tokens, which are no text."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Sent):
    content: list[TokenLogprob]
    refusal: None = None


class PromptLogprob(Sent):
    """`rank` 1 is the likeliest."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


def completion_logprobs(tokens: Sequence[TokenInfo], count: int, shift: int = 0) -> CompletionLogprobs:
    """`shift` characters stand before the text in which these tokens are placed."""
    return CompletionLogprobs(
        tokens=[_name(token.token_text) for token in tokens],
        token_logprobs=[None if token.logprob is None else _finite(token.logprob) for token in tokens],
        top_logprobs=[_named_alternatives(token, count) for token in tokens],
        text_offset=[shift + token.offset for token in tokens],
    )


def chat_logprobs(tokens: Sequence[TokenInfo], count: int) -> ChatLogprobs:
    content = []
    for token in tokens:
        top = [_top(piece, nats) for _, piece, nats in token.alternatives[:count]]
        own = _top(token.token_text, LEAST if token.logprob is None else token.logprob)
        content.append(TokenLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top))
    return ChatLogprobs(content=content, refusal=None)


def prompt_logprobs(tokens: Sequence[TokenInfo], count: int) -> PromptLogprobs:
    """Per token a dictionary by token id: the alternatives, and the token itself."""
    return [None if token.logprob is None else _ranked(token, token.logprob, count) for token in tokens]


def _ranked(token: TokenInfo, nats: float, count: int) -> dict[str, PromptLogprob]:
    own = {token.token: (nats, token.rank or 1, token.token_text)}
    others = {other: (value, rank, piece) for rank, (other, piece, value) in enumerate(token.alternatives[:count], 1)}
    return {
        str(key): PromptLogprob(logprob=_finite(value), rank=rank, decoded_token=_escaped(piece))
        for key, (value, rank, piece) in (own | others).items()
    }


def _named_alternatives(token: TokenInfo, count: int) -> dict[str, float] | None:
    """Of tokens with the same text the likelier one counts; the token itself is always there."""
    if token.logprob is None:
        return None
    named: dict[str, float] = {}
    for _, piece, nats in token.alternatives[:count]:
        named.setdefault(_name(piece), _finite(nats))
    named.setdefault(_name(token.token_text), _finite(token.logprob))
    return named


def _top(piece: TokenText, nats: float) -> TopLogprob:
    data = None if piece.bytes is None else list(piece.bytes)
    return TopLogprob(token=_escaped(piece), logprob=_finite(nats), bytes=data)


def _finite(nats: float) -> float:
    return max(nats, LEAST)


def _name(piece: TokenText) -> str:
    return _escaped(piece) if piece.text is not None else f"bytes:{_escaped(piece)}"


def _escaped(piece: TokenText) -> str:
    """The text; of a part of a character its bytes, as `\\xe2\\x82`."""
    return piece.text if piece.text is not None else "".join(f"\\x{byte:02x}" for byte in piece.bytes or b"")
