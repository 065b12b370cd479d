"""The events of a generation request: what `Engine.generate` yields, in order, all frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from w2s_core.types import Candidate, Hypothesis, Method, ProviderUsage, TokenText


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token that is final, and its place in its text: `offset` counts the characters before the one in which it
    begins. `logprob` is None where there is none (a prompt's first); `rank` (1 = the likeliest) is a prompt's.

    `alternatives` are ids, texts and log-probabilities in nats of the likeliest tokens there, best first.
    """

    token: int
    token_text: TokenText
    offset: int
    logprob: float | None
    rank: int | None = None
    alternatives: tuple[tuple[int, TokenText, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptRead:
    """The prompt of these choices, before anything else of them: its text, and its tokens placed in what they decode to
    (the same, but for tokenizers that normalize); none where only a provider knows them."""

    choices: Sequence[int]
    text: str
    tokens: Sequence[TokenInfo]


@dataclass(frozen=True, slots=True)
class TextCommitted:
    """More text of choice `index` that is final: nothing sent is ever taken back. `tokens`, where asked for, are those
    that this text is made of.

    `prompt_tokens` and `completion_tokens` are the whole request's usage so far, as `RequestFinished` ends it.
    """

    index: int
    text: str
    tokens: tuple[TokenInfo, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """Choice `index` is complete; `hypothesis.text` equals the concatenation of what was committed of it.

    `guided` tells whether its score means anything. `tokens`, where asked for, are those that no text came of: behind
    the others, the one that ended the answer.
    """

    index: int
    hypothesis: Hypothesis
    guided: bool
    tokens: tuple[TokenInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class GuidanceReport:
    """What a guided request cost. `sampled_tokens` are the large model's, pruned ones included; `scored_tokens` the
    pairs'; `upstream` is the part of both that providers delivered, if any. `tree` holds, per prompt and per chunk,
    every candidate, when `trace` was asked for."""

    method: Method
    beam_width: int
    successors: int
    chunk_length: int
    chunks: int
    sampled_tokens: int
    scored_tokens: int
    upstream: ProviderUsage | None = None
    tree: Sequence[Sequence[Sequence[Candidate]]] | None = None


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """The last event. `completion_tokens` counts returned tokens only; a token that ended an answer counts as one."""

    prompt_tokens: int
    completion_tokens: int
    guidance: GuidanceReport | None


Event: TypeAlias = PromptRead | TextCommitted | ChoiceFinished | RequestFinished
