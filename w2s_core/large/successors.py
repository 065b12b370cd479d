"""Builds hypotheses from drawn tokens: detokenizes what is new and ends an answer at a stop string."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from w2s_core.interfaces import Decoder
from w2s_core.search.randomness import successor_key
from w2s_core.text.detokenizer import DetokenizerState, detokenize
from w2s_core.text.stop_strings import find_stop_string
from w2s_core.types import Alternatives, FinishReason, Hypothesis, SamplingParams, Tokens


class SuccessorBuilder:
    """Builds the successors of one prompt's hypotheses; local and remote large models share it.

    It caches the detokenizer state of every living answer, so that decoding costs only the new tokens.
    """

    def __init__(self, decoder: Decoder, sampling: SamplingParams) -> None:
        self.stops = sampling.stop
        self._decoder = decoder if sampling.skip_special_tokens else decoder.verbatim
        self._include_stop = sampling.include_stop_str_in_output
        self._min_tokens = sampling.min_tokens
        self._states: dict[Tokens, DetokenizerState] = {}  # by the answer's tokens
        self._min_tokens_lengths: dict[Tokens, int] = {}  # characters of an answer's first `min_tokens` tokens

    def prune(self, beam: Sequence[Hypothesis]) -> None:
        """Drops the cached states of all answers that are not in `beam`."""
        self._states = {y.tokens: self._state(y.tokens) for y in beam}
        self._min_tokens_lengths = {}

    def build(
        self,
        parent: Hypothesis,
        index: int,
        new_tokens: Tokens,
        logprobs: tuple[float, ...],
        *,
        ended: bool,
        ending: int | None = None,
        alternatives: tuple[Alternatives, ...] = (),
        already_decoded: int = 0,
    ) -> Hypothesis:
        """Builds the `index`-th successor of `parent`, with `new_tokens` appended.

        `ended`: the model ended the answer, by the token `ending` where that is known. `logprobs` has an entry for each
        new token, and one more if `ended`; `alternatives` is as long as `logprobs`, or empty. A successor that grows is
        built again and again: its first `already_decoded` new tokens were there the last time.
        """
        tokens = parent.tokens + new_tokens
        if parent.parent is not None:
            self._states.pop(parent.parent.tokens, None)  # its successors are being continued, and it is not
        state = self._detokenize(tokens, len(parent.tokens) + already_decoded, replace=already_decoded > 0)
        text, finish_reason = state.text, _finish_reason(ended)
        text_length = self._kept_length(parent, tokens, text)
        if text_length is not None:
            tokens, text = self._tokens_covering(tokens, text_length), text[:text_length]
            ended, finish_reason = False, "stop"
        elif ending is not None and self._include_stop:
            text = detokenize(self._decoder, state, (*tokens, ending)).text
        return Hypothesis(
            tokens=tokens,
            text=text,
            key=successor_key(parent.key, len(parent.tokens), index),
            ended=ended,
            finish_reason=finish_reason,
            logprobs=(parent.logprobs + logprobs)[: len(tokens) + ended],
            parent=dataclasses.replace(parent, parent=None),
            ending=ending if ended else None,
            alternatives=(parent.alternatives + alternatives)[: len(tokens) + ended],
        )

    def _detokenize(self, tokens: Tokens, decoded: int, *, replace: bool) -> DetokenizerState:
        """Decodes an answer of which the first `decoded` tokens are decoded; `replace` drops their cached state."""
        state = detokenize(self._decoder, self._state(tokens[:decoded]), tokens)
        if replace:
            self._states.pop(tokens[:decoded], None)  # keeping every step would cost the square of the length
        self._states[tokens] = state
        return state

    def _kept_length(self, parent: Hypothesis, tokens: Tokens, text: str) -> int | None:
        """Characters of `text` to keep where a stop string ends it; None where none does."""
        start = len(parent.text)
        if self.stops and len(parent.tokens) < self._min_tokens:
            if len(tokens) <= self._min_tokens:
                return None
            start = max(start, self._min_tokens_length(tokens[: self._min_tokens]))
        match = find_stop_string(text, start, self.stops)
        if match is None:
            return None
        begin, end = match
        return end if self._include_stop else begin

    def _min_tokens_length(self, tokens: Tokens) -> int:
        if tokens not in self._min_tokens_lengths:
            self._min_tokens_lengths[tokens] = len(detokenize(self._decoder, DetokenizerState(), tokens).text)
        return self._min_tokens_lengths[tokens]

    def _state(self, tokens: Tokens) -> DetokenizerState:
        cached = self._states.get(tokens)
        return detokenize(self._decoder, DetokenizerState(), tokens) if cached is None else cached

    def _tokens_covering(self, tokens: Tokens, characters: int) -> Tokens:
        """The shortest prefix of `tokens` whose text has at least `characters` characters."""
        state, size = DetokenizerState(), 0
        while len(state.text) < characters and size < len(tokens):
            size += 1
            state = detokenize(self._decoder, state, tokens[:size])
        return tokens[:size]


def _finish_reason(ended: bool) -> FinishReason | None:
    return "stop" if ended else None
