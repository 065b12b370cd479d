"""Incremental detokenization: decodes an answer that grows token by token, at the cost of the new tokens.

The method is that of vLLM and text-generation-inference: a window of the last tokens is decoded with and without the
new ones, and the difference is appended to the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from w2s_core.interfaces import Decoder

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
