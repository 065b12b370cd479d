"""Grammar state of one answer, and the stop tokens as bits of its token mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

BITS = 32  # tokens per word of a mask
Mask = npt.NDArray[np.int32]


class EndTokens:
    """The tokens that end an answer, as indices of words in a token mask and their bits."""

    def __init__(self, tokens: Sequence[int]) -> None:
        ids = np.array(tokens, np.int64)
        self.words = ids // BITS
        self.bits = np.left_shift(1, ids % BITS).astype(np.uint32).view(np.int32)


class GrammarState:
    """One answer's state in its grammar.

    `mask` holds the tokens allowed next, once computed. `error` is set when the grammar cannot be continued.
    """

    __slots__ = ("_end_tokens", "error", "grammar", "mask", "matcher")

    def __init__(self, grammar: str, matcher: LLMatcher, end_tokens: EndTokens) -> None:
        self.grammar = grammar
        self.matcher = matcher
        self.mask: Mask | None = None
        self.error: str | None = None
        self._end_tokens = end_tokens

    def append(self, token: int) -> None:
        """Advances by the answer's next token, which must not be one that ends it."""
        self.matcher.consume_token(token)

    def set_mask(self, mask: Mask) -> None:
        """Takes the mask that llguidance computed and allows every end token where the grammar is complete.

        The library itself knows only EOS.
        """
        if self.matcher.is_accepting():
            np.bitwise_or.at(mask, self._end_tokens.words, self._end_tokens.bits)
        if self.matcher.is_error() or not mask.any():
            self.error = self.matcher.get_error() or "no token can come next"
        self.mask = mask
