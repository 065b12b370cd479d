"""Incremental detokenization: decodes an answer that grows token by token, at the cost of the new tokens.

The method is that of vLLM and text-generation-inference: a window of the last tokens is decoded with and without the
new ones, and the difference is appended to the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from w2s_core.interfaces import Decoder
from w2s_core.types import Tokens

REPLACEMENT = "\ufffd"  # decoders return it for bytes that are not, or not yet, a character


@dataclass(frozen=True, slots=True)
class DetokenizerState:
    """The text of an answer so far, and the window at which decoding continues.

    `text` never ends inside a character and only ever grows. `settled` is the text of `tokens[:read_offset]`, which is
    final. The next window begins at `tokens[prefix_offset]`, before `read_offset`, because some tokenizers decode the
    first token of a sequence differently from the same token later (SentencePiece drops its space).
    """

    text: str = ""
    settled: str = ""
    prefix_offset: int = 0
    read_offset: int = 0


def detokenize(decoder: Decoder, state: DetokenizerState, tokens: Sequence[int]) -> DetokenizerState:
    """Decodes the whole answer `tokens`, of which `state` has decoded a prefix.

    A character of which only the first bytes have been drawn is held back until its last token arrives.
    """
    settled_length = len(decoder.decode(tokens[state.prefix_offset : state.read_offset]))
    window = decoder.decode(tokens[state.prefix_offset :])
    complete = window.rstrip(REPLACEMENT)
    text = state.settled + complete[settled_length:]
    if len(complete) < len(window) or len(complete) < settled_length:
        return DetokenizerState(text, state.settled, state.prefix_offset, state.read_offset)
    return DetokenizerState(text, text, state.read_offset, len(tokens))


class AnswerDetokenizer:
    """Detokenizes the growing answers of one prompt. It caches their states, by the answer's tokens.

    A state holds the whole text, so those of answers that are not continued are to be dropped.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._states: dict[Tokens, DetokenizerState] = {}

    def extend(self, tokens: Tokens, decoded: int) -> DetokenizerState:
        """Decodes an answer whose first `decoded` tokens were decoded before."""
        if tokens not in self._states:
            self._states[tokens] = detokenize(self.decoder, self._state(tokens[:decoded]), tokens)
        return self._states[tokens]

    def keep_only(self, answers: Iterable[Tokens]) -> None:
        """Drops the states of all other answers."""
        self._states = {tokens: self._state(tokens) for tokens in answers}

    def drop(self, tokens: Tokens) -> None:
        """Drops the state of an answer that is not continued any more."""
        self._states.pop(tokens, None)

    def text(self, tokens: Tokens) -> str:
        """The text of an answer, decoded from its first token on."""
        return detokenize(self.decoder, DetokenizerState(), tokens).text

    def covering(self, tokens: Tokens, characters: int) -> Tokens:
        """The shortest prefix of `tokens` whose text has at least `characters` characters."""
        state, size = DetokenizerState(), 0
        while len(state.text) < characters and size < len(tokens):
            size += 1
            state = detokenize(self.decoder, state, tokens[:size])
        return tokens[:size]

    def _state(self, tokens: Tokens) -> DetokenizerState:
        cached = self._states.get(tokens)
        return detokenize(self.decoder, DetokenizerState(), tokens) if cached is None else cached
