"""Tokens of answers that grow, in another model's tokenizer, at the cost of what is new.

A byte-level BPE splits text into words before it looks for tokens, and a letter, a space and a letter are always the
end of one word and the beginning of the next. So the tokens up to such a space never change, whatever comes behind it,
and only the text from there on is read again. Other tokenizers read the whole answer every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Hypothesis, Tokens


@dataclass(frozen=True, slots=True)
class _Settled:
    """The first `characters` of a text are `tokens`, for good."""

    characters: int = 0
    tokens: Tokens = ()


class Retokenizer:
    """One search's answers. Remembers those of the last call, of which the next ones are successors."""

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self._tokenizer = tokenizer
        self._settled: dict[str, _Settled] = {}

    def encode(self, candidates: Sequence[Hypothesis]) -> list[Tokens]:
        """Token ids of each whole answer, without special tokens: what encoding it from scratch gives."""
        known = [self._known(y) for y in candidates]
        borders = [
            _last_border(y.text, settled.characters) if self._tokenizer.splits_at_words else 0
            for y, settled in zip(candidates, known, strict=True)
        ]
        pieces = [
            piece
            for y, settled, border in zip(candidates, known, borders, strict=True)
            for piece in (y.text[settled.characters : border], y.text[border:])
        ]
        encoded = iter(self._tokenizer.encode_many(pieces))
        answers, remembered = [], {}
        for y, settled, border in zip(candidates, known, borders, strict=True):
            more = _Settled(border, settled.tokens + next(encoded))
            remembered[y.text] = more
            answers.append(more.tokens + next(encoded))
        self._settled = remembered
        return answers

    def _known(self, y: Hypothesis) -> _Settled:
        """What of this answer is settled, by itself or by its parent; a stop string may have cut it shorter than
        that."""
        for before in (y.text, y.parent.text if y.parent else ""):
            settled = self._settled.get(before)
            # Behind the settled characters come the border's space and a letter.
            if settled is not None and y.text.startswith(before[: settled.characters + 2]):
                return settled
        return _Settled()


def _last_border(text: str, start: int) -> int:
    """The last space behind `start` that stands between two letters, or `start`."""
    at = len(text) - 1
    while (at := text.rfind(" ", start + 1, at)) > 0:
        if text[at - 1].isalpha() and text[at + 1].isalpha():
            return at
    return start
