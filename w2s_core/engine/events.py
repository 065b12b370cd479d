"""Events of a generation request: what `Engine.generate` yields, in order. All are frozen.

PromptRead?  (RoundFinished? TextCommitted*)*  ChoiceFinished   for each prompt and choice; those of several interleave
RequestFinished                                                  once, at the end
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from w2s_core.search.tree import RoundCandidate
from w2s_core.types import Candidate, Hypothesis, Method, ProviderUsage, TokenText


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A final token with its text offset and log-probabilities.

    `offset` counts the characters of the text before the one in which the token begins. `logprob` is in nats, or None
    for a token that has none (the first of a prompt). `rank` is set for tokens of a prompt; 1 is the most likely.
    `alternatives` are (id, text, log-probability in nats) of the most likely tokens at this position, best first.
    """

    token: int
    token_text: TokenText
    offset: int
    logprob: float | None
    rank: int | None = None
    alternatives: tuple[tuple[int, TokenText, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptRead:
    """The prompt of some choices, sent before any other event of theirs: `text`, and `tokens` with their offsets.

    Offsets refer to the text that the tokens decode to, which is `text` unless the tokenizer normalizes its input.
    `tokens` is empty if only the provider knows the prompt's tokens.
    """

    choices: Sequence[int]
    text: str
    tokens: Sequence[TokenInfo]


@dataclass(frozen=True, slots=True)
class RoundFinished:
    """A round of a prompt's search, sent if `Guidance.trace` is "stream", and before the text that the round commits.

    `prompt` is the number of the prompt, `choices` are the indices of its choices, all from 0, and `chunk` is the
    number of the chunk that the round has chosen, from 1. The first `committed` characters are the same in every
    candidate of the beam, and are committed. `sampled_tokens` and `scored_tokens` are what the prompt has cost so far,
    `seconds` the time since the request's arrival. `truncated`: the rounds have grown too large; this one has no
    candidates, and no more are sent.
    """

    prompt: int
    choices: Sequence[int]
    chunk: int
    candidates: Sequence[RoundCandidate]
    committed: int
    sampled_tokens: int
    scored_tokens: int
    seconds: float
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class TextCommitted:
    """More final text of choice `index`; text that was sent is never taken back.

    `thought`: the text belongs to a reasoning model's thoughts, not to its answer. `tokens` are the tokens of this
    text, if the request asked for them. `prompt_tokens` and `completion_tokens` are the usage of the whole request so
    far; `RequestFinished` has the final numbers.
    """

    index: int
    text: str
    tokens: tuple[TokenInfo, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    thought: bool = False


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """Choice `index` is complete. `hypothesis.text` equals the concatenation of its committed texts.

    `guided` says whether a pair scored the hypothesis, so that its score has a meaning. `tokens`, if the request asked
    for them, are those that belong to no `TextCommitted`: they have no text, such as the EOS token that ended it.
    `thoughts` are those of a reasoning model, "" if there are none; None if the model is not one.
    """

    index: int
    hypothesis: Hypothesis
    guided: bool
    tokens: tuple[TokenInfo, ...] = ()
    thoughts: str | None = None


@dataclass(frozen=True, slots=True)
class GuidanceReport:
    """The parameters and the cost of a guided search.

    `sampled_tokens` are those of the large model, pruned ones included; `scored_tokens` those of the pairs. `upstream`
    is the part of both that remote providers delivered, or None. `tree` holds every candidate per prompt and chunk if
    `Guidance.trace` is true; `tree_truncated` says that it has grown too large, so that it lacks later chunks.
    """

    method: Method
    beam_width: int
    successors: int
    chunk_length: int
    chunks: int
    sampled_tokens: int
    scored_tokens: int
    upstream: ProviderUsage | None = None
    tree: Sequence[Sequence[Sequence[Candidate]]] | None = None
    tree_truncated: bool = False


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """The last event of a request. `completion_tokens` counts returned tokens only, EOS tokens included.

    `cached_tokens` are the tokens of the prompts whose KV was cached, as far as that is known. `reasoning_tokens` is
    the part of `completion_tokens` that belongs to thoughts; None if the model writes none.
    """

    prompt_tokens: int
    completion_tokens: int
    guidance: GuidanceReport | None
    cached_tokens: int = 0
    reasoning_tokens: int | None = None


Event: TypeAlias = PromptRead | RoundFinished | TextCommitted | ChoiceFinished | RequestFinished
