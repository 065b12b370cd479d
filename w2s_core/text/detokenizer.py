"""Incremental detokenization: the text of an answer that grows token by token, at the cost of the new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from w2s_core.interfaces import Decoder

_INCOMPLETE = "\ufffd"  # what decoding yields for bytes that are no character, or not yet


@dataclass(frozen=True, slots=True)
class DetokenizerState:
    """Text of a growing answer. `text` never ends in half a character and only ever grows.

    tokens[:read] are decoded for good into `settled`; they are re-read from `prefix` on, because some decoders
    treat a text's first token differently from the same token later.
    """

    text: str = ""
    settled: str = ""
    prefix: int = 0
    read: int = 0


def detokenize(tokenizer: Decoder, before: DetokenizerState, tokens: Sequence[int]) -> DetokenizerState:
    """`tokens` is the whole answer so far; `before` the decoding of a part from its beginning.

    Cost is that of the new tokens, not of the answer.
    """
    known = len(tokenizer.decode(tokens[before.prefix : before.read]))
    window = tokenizer.decode(tokens[before.prefix :])
    complete = window.rstrip(_INCOMPLETE)
    text = before.settled + complete[known:]
    if len(complete) < len(window) or len(complete) < known:
        return DetokenizerState(text, before.settled, before.prefix, before.read)
    return DetokenizerState(text, text, before.read, len(tokens))
