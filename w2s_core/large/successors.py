"""From drawn tokens to hypotheses: decodes what is new, ends an answer at a stop string. Local and remote alike."""

from __future__ import annotations

from collections.abc import Sequence

from w2s_core.interfaces import Decoder
from w2s_core.search.randomness import successor_key
from w2s_core.text.detokenizer import DetokenizerState, detokenize
from w2s_core.text.stop_strings import find_stop_string
from w2s_core.types import Alternatives, FinishReason, Hypothesis, SamplingParams, Tokens


class SuccessorBuilder:
    """One prompt's answers. Remembers how far each living answer is decoded, so that cost is that of new tokens."""

    def __init__(self, decoder: Decoder, sampling: SamplingParams) -> None:
        self.stops = sampling.stop
        self._decoder = decoder if sampling.skip_special_tokens else decoder.verbatim
        self._shows_stop = sampling.include_stop_str_in_output
        self._min_tokens = sampling.min_tokens
        self._decoded: dict[Tokens, DetokenizerState] = {}
        self._beginnings: dict[Tokens, int] = {}  # characters of the first `min_tokens` tokens

    def prune(self, beam: Sequence[Hypothesis]) -> None:
        """Keeps what is known of `beam` and of nobody else."""
        self._decoded = {y.tokens: self._decoding(y.tokens) for y in beam}
        self._beginnings = {}

    def build(
        self,
        parent: Hypothesis,
        index: int,
        tokens: Tokens,
        logprobs: tuple[float, ...],
        *,
        ended: bool,
        ending: int | None = None,
        alternatives: tuple[Alternatives, ...] = (),
        already_decoded: int = 0,
    ) -> Hypothesis:
        """The `index`-th successor of `parent`, with these new tokens; `logprobs` has one more if `ended`, by `ending`,
        and `alternatives` as many as `logprobs` if there are any.

        The first `already_decoded` new tokens were there when this successor was last built, and are not decoded again.
        """
        whole = parent.tokens + tokens
        before = whole[: len(parent.tokens) + already_decoded]
        decoded = detokenize(self._decoder, self._decoding(before), whole)
        if already_decoded:
            self._decoded.pop(before, None)  # a step on the way; keeping them all would cost the square of the length
        self._decoded[whole] = decoded
        text, finish = decoded.text, _finish(ended)
        stop = self._stop(parent, whole, text)
        if stop is not None:
            whole, text, ended, finish = self._tokens_of(whole, stop), text[:stop], False, "stop"
        elif ending is not None and self._shows_stop:
            text = detokenize(self._decoder, decoded, (*whole, ending)).text
        return Hypothesis(
            tokens=whole,
            text=text,
            key=successor_key(parent.key, len(parent.tokens), index),
            ended=ended,
            finish_reason=finish,
            logprobs=(parent.logprobs + logprobs)[: len(whole) + ended],
            parent=parent,
            ending=ending if ended else None,
            alternatives=(parent.alternatives + alternatives)[: len(whole) + ended],
        )

    def _stop(self, parent: Hypothesis, tokens: Tokens, text: str) -> int | None:
        """Characters of `text` that are left when a stop string has ended it, else None."""
        start = len(parent.text)
        if self.stops and len(parent.tokens) < self._min_tokens:
            if len(tokens) <= self._min_tokens:
                return None
            start = max(start, self._length_of(tokens[: self._min_tokens]))
        found = find_stop_string(text, start, self.stops)
        return found and found[self._shows_stop]

    def _length_of(self, beginning: Tokens) -> int:
        if beginning not in self._beginnings:
            self._beginnings[beginning] = len(detokenize(self._decoder, DetokenizerState(), beginning).text)
        return self._beginnings[beginning]

    def _decoding(self, tokens: Tokens) -> DetokenizerState:
        known = self._decoded.get(tokens)
        return detokenize(self._decoder, DetokenizerState(), tokens) if known is None else known

    def _tokens_of(self, tokens: Tokens, characters: int) -> Tokens:
        """The fewest tokens whose text covers the first `characters`."""
        decoded, size = DetokenizerState(), 0
        while len(decoded.text) < characters and size < len(tokens):
            size += 1
            decoded = detokenize(self._decoder, decoded, tokens[:size])
        return tokens[:size]


def _finish(ended: bool) -> FinishReason | None:
    return "stop" if ended else None
