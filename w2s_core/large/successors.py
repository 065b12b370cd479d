"""Builds hypotheses from drawn tokens: detokenizes what is new and ends an answer at a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from w2s_core.interfaces import Decoder
from w2s_core.search.randomness import successor_key
from w2s_core.text.detokenizer import AnswerDetokenizer, DetokenizerState, detokenize
from w2s_core.text.stop_strings import find_stop_string
from w2s_core.types import Alternatives, FinishReason, Hypothesis, SamplingParams, Tokens


class SuccessorBuilder:
    """Builds the successors of one `prompt`'s hypotheses; local and remote large models share it.

    Decoding costs only the new tokens. Where the request shows special tokens, answers are decoded twice: once as they
    are shown, and once as scorers see them.
    """

    def __init__(self, decoder: Decoder, prompt: Tokens, sampling: SamplingParams) -> None:
        self.stops = sampling.stop
        self._stop_behind = sampling.stop_behind
        self._scored = AnswerDetokenizer(decoder, prompt)
        self._shown = self._scored if sampling.skip_special_tokens else AnswerDetokenizer(decoder.verbatim, prompt)
        self._include_stop = sampling.include_stop_str_in_output
        self._min_tokens = sampling.min_tokens
        self._min_tokens_lengths: dict[Tokens, int] = {}  # characters of an answer's first `min_tokens` tokens

    def prune(self, beam: Sequence[Hypothesis]) -> None:
        """Drops the cached states of all answers that are not in `beam`."""
        for detokenizer in {self._shown, self._scored}:
            detokenizer.keep_only(y.tokens for y in beam)
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
        drawn = parent.tokens + new_tokens
        shown, plain = self._decode(parent, drawn, already_decoded)
        (tokens, text), scored, finish_reason = (drawn, shown.text), (drawn, plain.text), _finish_reason(ended)
        if (stop := self._find_stop(parent, drawn, text)) is not None:
            (tokens, text), scored = self._cut(drawn, text, stop)
            ended, finish_reason = False, "stop"
        elif ending is not None and self._include_stop:
            text = detokenize(self._shown.decoder, shown, (ending,)).text
        y = Hypothesis(
            tokens=tokens,
            text=text,
            key=successor_key(parent.key, len(parent.tokens), index),
            ended=ended,
            finish_reason=finish_reason,
            logprobs=(parent.logprobs + logprobs)[: len(tokens) + ended],
            parent=_without_parent(parent),
            ending=ending if ended else None,
            alternatives=(parent.alternatives + alternatives)[: len(tokens) + ended],
        )
        return y if scored == (tokens, text) else replace(y, scored_as=_as_scored(y, parent, *scored))

    def _decode(
        self, parent: Hypothesis, tokens: Tokens, already_decoded: int
    ) -> tuple[DetokenizerState, DetokenizerState]:
        """The states of an answer as it is shown and as it is scored. Drops those that it has outgrown."""
        decoded = len(parent.tokens) + already_decoded
        states = self._shown.extend(tokens, decoded), self._scored.extend(tokens, decoded)
        for detokenizer in (self._shown, self._scored):
            if already_decoded:
                detokenizer.drop(tokens[:decoded])
            if parent.parent is not None:
                detokenizer.drop(parent.parent.tokens)  # its successors are being continued, and it is not
        return states

    def _find_stop(self, parent: Hypothesis, tokens: Tokens, text: str) -> tuple[int, int] | None:
        """(begin, end) of the stop string that ends the answer in `text`, or None."""
        start, first = len(parent.text), self._answer_start(text)
        if first is None:
            return None
        if self.stops and len(parent.tokens) < self._min_tokens:
            if len(tokens) <= self._min_tokens:
                return None
            start = max(start, self._min_tokens_length(tokens[: self._min_tokens]))
        found = find_stop_string(text[first:], max(0, start - first), self.stops)
        return found and (found[0] + first, found[1] + first)

    def _answer_start(self, text: str) -> int | None:
        """The number of characters before the answer proper, behind which stop strings count; None if there is none."""
        if self._stop_behind is None:
            return 0
        (opening, closing), begun = self._stop_behind, text.lstrip()
        if not begun.startswith(opening):
            return None if opening.startswith(begun) else 0
        marker = text.find(closing)
        return None if marker < 0 else marker + len(closing)

    def _min_tokens_length(self, tokens: Tokens) -> int:
        if tokens not in self._min_tokens_lengths:
            self._min_tokens_lengths[tokens] = len(self._shown.text(tokens))
        return self._min_tokens_lengths[tokens]

    def _cut(self, tokens: Tokens, text: str, stop: tuple[int, int]) -> tuple[tuple[Tokens, str], tuple[Tokens, str]]:
        """Tokens and text of an answer that a stop string ends at (begin, end), as it is shown and as it is scored."""
        begin, end = stop
        before = self._shown.covering(tokens, begin), text[:begin]
        shown = (self._shown.covering(tokens, end), text[:end]) if self._include_stop else before
        if self._scored is self._shown:
            return shown, before
        covering, excess = before[0], len(self._shown.text(before[0])) - begin
        scored = self._scored.text(covering)
        # A stop string may begin within the last token, but that is no text to scorers if it is a special one.
        scored = scored[: max(len(scored) - excess, len(self._scored.text(covering[:-1])))]
        return shown, (self._scored.covering(tokens, len(scored)), scored)


def _finish_reason(ended: bool) -> FinishReason | None:
    return "stop" if ended else None


def _without_parent(y: Hypothesis) -> Hypothesis:
    return replace(y, parent=None, scored_as=None)


def _as_scored(y: Hypothesis, parent: Hypothesis, tokens: Tokens, text: str) -> Hypothesis:
    logprobs = y.logprobs[: len(tokens) + y.ended]
    return replace(
        y, tokens=tokens, text=text, logprobs=logprobs, alternatives=(), parent=_without_parent(parent.as_scored)
    )
