"""The seams: a large model that proposes, a pair that scores. Each has a local, a remote and a fake implementation.

A session learns who survived from the next call: `propose(live)` and `score(candidates)` name every hypothesis that
still matters, so each side frees what is not an ancestor of them. Every hypothesis carries its tokens, so a session
can be continued anywhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from w2s_core.types import (
    ChatPrompt,
    Grammar,
    Hypothesis,
    Prompt,
    PromptLogprobs,
    ProviderUsage,
    SamplingParams,
    Score,
    Tokens,
    TokenText,
)


class Decoder(Protocol):
    """What tells the text of tokens; bytes that are no character, or not yet, as U+FFFD."""

    @property
    def verbatim(self) -> Decoder:
        """The same, in whose texts special tokens show."""
        ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class TokenDecoder(Decoder, Protocol):
    """Tells also what one token is alone."""

    def token_text(self, token: int) -> TokenText: ...


class Tokenizer(TokenDecoder, Protocol):
    """Makes tokens of text, too; as `HFTokenizer`, where each is explained."""

    @property
    def size(self) -> int: ...
    def encode(self, text: str, *, special_tokens: bool) -> Tokens: ...
    def encode_chat(self, prompt: ChatPrompt) -> Tokens: ...
    def convert_ids_to_tokens(self, tokens: Sequence[int]) -> list[str]: ...


class Proposer(Protocol):
    """Whoever continues hypotheses: all that the search itself asks of a large model."""

    async def propose(self, beam: Sequence[Hypothesis], *, k: int, length: int) -> list[Hypothesis]:
        """k successors of each hypothesis in `beam`, of at most `length` more tokens; parents in order, k each."""
        ...


class Proposals(Proposer, Protocol):
    """One prompt's view of the large model; owns that prompt's KV."""

    @property
    def sampled_tokens(self) -> int:
        """Drawn so far, pruned ones included."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt in the large model's tokens; 0 where only a provider can tell and has not yet."""
        ...

    @property
    def provider_usage(self) -> ProviderUsage:
        """Had from a provider so far."""
        ...

    def grow(self, hypothesis: Hypothesis, *, length: int) -> AsyncGenerator[Hypothesis]:
        """The successor that `propose([hypothesis], k=1, length=length)` returns, yielded again as it grows."""
        ...


class LargeModel(Protocol):
    """π_base, frozen."""

    @property
    def context_length(self) -> int:
        """Tokens, prompt and answer together. Raises UnavailableError while a provider has not told."""
        ...

    @property
    def decoder(self) -> TokenDecoder:
        """What its tokens are as text."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What makes tokens of text; None where only a provider has it."""
        ...

    @property
    def tool_format(self) -> str | None:
        """The name of its tool call format in `structured.tool_formats`; None where that is not known."""
        ...

    def check(self, sampling: SamplingParams) -> None:
        """Raises RequestError, naming the field, for what this model cannot do (a token id that it does not have)."""
        ...

    @property
    def supports_chunked_grammar(self) -> bool:
        """Whether an answer in a grammar can be drawn chunk by chunk."""
        ...

    async def check_grammar(self, grammar: Grammar) -> Grammar:
        """The same as `SamplingParams.grammar` must be for `open`. Raises RequestError, naming its field, for what is
        malformed, not supported, or too complex."""
        ...

    def encode(self, prompt: Prompt) -> Tokens:
        """Token ids of the prompt, special tokens included, or whatever else `open` shall get back.

        Raises RequestError (a chat template that refuses) and UnavailableError (a provider that is down).
        """
        ...

    @property
    def exposes_token_ids(self) -> bool:
        """Whether `encode` and hypotheses give the model's own token ids; else only `open` and `decoder` read them."""
        ...

    def count_tokens(self, prompt: Tokens) -> int:
        """Tokens of an encoded prompt; 0 where only a provider can count them."""
        ...

    def decode_prompt(self, prompt: Prompt) -> Prompt:
        """The same prompt without token ids of this model: a TokenPrompt is decoded, others are returned as is."""
        ...

    def open(self, prompt: Tokens, sampling: SamplingParams, *, rows: int) -> AbstractAsyncContextManager[Proposals]:
        """A session for one prompt, of at most `rows` sequences at once; leaving it frees them within one step.

        Where `sampling.logprobs` asks for alternatives, its hypotheses have them.
        """
        ...

    async def prompt_logprobs(self, prompt: Tokens, *, top: int) -> PromptLogprobs:
        """The prompt's own log-probabilities, with the `top` likeliest tokens at each place.

        Raises RequestError("…", "prompt_logprobs") where it cannot tell.
        """
        ...


class Scoring(Protocol):
    """One prompt's view of a pair."""

    @property
    def scored_tokens(self) -> int:
        """Run through the pair so far, both models together."""
        ...

    @property
    def provider_usage(self) -> ProviderUsage:
        """Had from providers so far."""
        ...

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        """These are about to be asked for, perhaps among others: does now what can be done. Returns when the session is
        ready for another call, whether or not these are scored by then."""
        ...

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        """log π_tuned(y'|x) − log π_untuned(y'|x) of each whole answer so far, in nats, in the same order."""
        ...


class Scorer(Protocol):
    """A pair (π_tuned, π_untuned), or a weighted sum of several."""

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        """Tokens of answer that the pair can score behind this prompt. Raises RequestError when it can score none."""
        ...

    def open(self, prompt: Prompt) -> AbstractAsyncContextManager[Scoring]:
        """A session for one prompt; leaving the context frees what it holds."""
        ...
