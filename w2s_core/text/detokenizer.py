"""Incremental detokenization: decodes an answer behind its prompt, token by token, at the cost of the new tokens.

The method is that of vLLM and text-generation-inference: a window of the last tokens is decoded with and without the
new ones, and the difference is appended to the text. The first window is the prompt's end, because many tokenizers
decode the first token of a sequence differently from the same token later (SentencePiece drops its space).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from w2s_core.interfaces import Decoder
from w2s_core.types import Tokens

REPLACEMENT = "\ufffd"  # decoders return it for bytes that are not, or not yet, a character
_WINDOW = 6  # tokens that are decoded before an answer's first, or more if those have no text


@dataclass(frozen=True, slots=True)
class DetokenizerState:
    """The text of an answer so far, and the window at which decoding continues.

    `text` never ends inside a character and only ever grows. `settled` is the text without that of the pending tokens:
    those at the end of the `window`, behind its first `settled_tokens`, which end inside a character. The settled part
    of the window decodes to `settled_characters`.
    """

    text: str = ""
    settled: str = ""
    window: Tokens = ()
    settled_tokens: int = 0
    settled_characters: int = 0

    @property
    def pending(self) -> int:
        """The number of tokens at the end that do not make a whole character yet."""
        return len(self.window) - self.settled_tokens


def start_behind(decoder: Decoder, prompt: Tokens) -> DetokenizerState:
    """The state before the first token of an answer to `prompt`. Its text is empty."""
    size = _WINDOW
    while size < len(prompt) and not decoder.decode(prompt[-size:]).rstrip(REPLACEMENT):
        size *= 2
    state = detokenize(decoder, DetokenizerState(), prompt[-size:])
    characters = state.settled_characters + len(state.text) - len(state.settled)
    return replace(state, text="", settled="", settled_characters=characters)


def detokenize(decoder: Decoder, state: DetokenizerState, tokens: Tokens) -> DetokenizerState:
    """Appends `tokens`. The result does not depend on how an answer is cut into calls.

    A character of which only the first bytes have been drawn is held back until its last token arrives.
    """
    decoded = decoder.decode(window := state.window + tokens)
    if REPLACEMENT not in decoded:
        return _settle(decoder, state, window, decoded)
    for (
        token
    ) in tokens:  # one at a time, for a decoder may turn a whole run of bytes into U+FFFD for its unfinished end
        state = _append(decoder, state, token)
    return state


def _append(decoder: Decoder, state: DetokenizerState, token: int) -> DetokenizerState:
    window = (*state.window, token)
    decoded = decoder.decode(window)
    complete = decoded.rstrip(REPLACEMENT)
    if len(complete) == len(decoded) >= state.settled_characters:
        return _settle(decoder, state, window, decoded)
    text = state.settled + complete[state.settled_characters :]
    return replace(state, text=max(text, state.text, key=len), window=window)


def _settle(decoder: Decoder, state: DetokenizerState, window: Tokens, decoded: str) -> DetokenizerState:
    """The state when the whole window, which decodes to `decoded`, is final."""
    text = state.settled + decoded[state.settled_characters :]
    if len(decoded) == state.settled_characters > 0:  # special tokens: what follows must not be first in its window
        return replace(state, text=text, settled=text, window=state.window[: state.settled_tokens])
    size = 1
    while size < len(window) and not _is_text(decoder.decode(window[-size:])):
        size += 1 if size < _WINDOW else size
    window = window[-size:]
    return DetokenizerState(text, text, window, len(window), len(decoder.decode(window)))


def _is_text(decoded: str) -> bool:
    return bool(decoded) and REPLACEMENT not in decoded


class AnswerDetokenizer:
    """Detokenizes the growing answers of one prompt. It caches their states, by the answer's tokens.

    A state holds the whole text, so those of answers that are not continued are to be dropped.
    """

    def __init__(self, decoder: Decoder, prompt: Tokens = ()) -> None:
        self.decoder = decoder
        self._start = start_behind(decoder, prompt)
        self._states: dict[Tokens, DetokenizerState] = {}

    def extend(self, tokens: Tokens, decoded: int) -> DetokenizerState:
        """Decodes an answer whose first `decoded` tokens were decoded before."""
        if tokens not in self._states:
            self._states[tokens] = detokenize(self.decoder, self._state(tokens[:decoded]), tokens[decoded:])
        return self._states[tokens]

    def keep_only(self, answers: Iterable[Tokens]) -> None:
        """Drops the states of all other answers."""
        self._states = {tokens: self._state(tokens) for tokens in answers}

    def drop(self, tokens: Tokens) -> None:
        """Drops the state of an answer that is not continued any more."""
        self._states.pop(tokens, None)

    def text(self, tokens: Tokens) -> str:
        """The text of an answer, decoded from its first token on."""
        return detokenize(self.decoder, self._start, tokens).text

    def covering(self, tokens: Tokens, characters: int) -> Tokens:
        """The shortest prefix of `tokens` whose text has at least `characters` characters."""
        state, size = self._start, 0
        while len(state.text) < characters and size < len(tokens):
            state = detokenize(self.decoder, state, tokens[size : size + 1])
            size += 1
        return tokens[:size]

    def _state(self, tokens: Tokens) -> DetokenizerState:
        cached = self._states.get(tokens)
        return detokenize(self.decoder, self._start, tokens) if cached is None else cached
