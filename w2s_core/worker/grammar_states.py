"""The state of an answer in its grammar, and the tokens that may end it as bits of a token mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

BITS = 32  # tokens in a word of a mask
Mask = npt.NDArray[np.int32]


class EndTokens:
    """The tokens that end an answer, as places and bits of a mask."""

    def __init__(self, tokens: Sequence[int]) -> None:
        places = np.array(tokens, np.int64)
        self.words = places // BITS
        self.bits = np.left_shift(1, places % BITS).astype(np.uint32).view(np.int32)


class GrammarState:
    """One answer's place in its grammar.

    `mask` tells what may come next, once that is computed, and `problem` what went wrong with the grammar.
    """

    __slots__ = ("_ends", "grammar", "mask", "matcher", "problem")

    def __init__(self, grammar: str, matcher: LLMatcher, ends: EndTokens) -> None:
        self.grammar = grammar
        self.matcher = matcher
        self.mask: Mask | None = None
        self.problem: str | None = None
        self._ends = ends

    def append(self, token: int) -> None:
        """The answer's next token; not one that ends it."""
        self.matcher.consume_token(token)

    def take(self, mask: Mask) -> None:
        """What the library computed; of what ends an answer it knows EOS only."""
        if self.matcher.is_accepting():
            np.bitwise_or.at(mask, self._ends.words, self._ends.bits)
        if self.matcher.is_error() or not mask.any():
            self.problem = self.matcher.get_error() or "no token can come next"
        self.mask = mask
