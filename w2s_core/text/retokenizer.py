"""Retokenizer: encodes growing answers with another model's tokenizer, at the cost of the new text.

A byte-level BPE splits text into words before it looks for tokens, and where a space stands between two letters one
word ends and the next begins. So the tokens before such a space never change, whatever is appended, and only the text
from there on is encoded again. Other tokenizers encode the whole answer every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Hypothesis, Tokens


@dataclass(frozen=True, slots=True)
class _StablePrefix:
    """The first `characters` of a text, whose `tokens` are final."""

    characters: int = 0
    tokens: Tokens = ()


class Retokenizer:
    """Encodes the answers of one search behind the tokens of a `prompt`.

    Caches the last call's answers, of which the next ones are successors.
    """

    def __init__(self, tokenizer: HFTokenizer, prompt: Tokens) -> None:
        self._tokenizer = tokenizer
        self._encode = tokenizer.encode_continuations if tokenizer.decode(prompt) else tokenizer.encode_many
        self._prefixes: dict[str, _StablePrefix] = {}  # by the answer's text

    def encode(self, candidates: Sequence[Hypothesis]) -> list[Tokens]:
        """Token ids of each whole answer, without special tokens; the same as encoding it from its start gives."""
        prefixes = [self._stable_prefix(y) for y in candidates]
        boundaries = [
            _last_word_boundary(y.text, prefix.characters) if self._tokenizer.splits_at_words else 0
            for y, prefix in zip(candidates, prefixes, strict=True)
        ]
        texts = [
            text
            for y, prefix, boundary in zip(candidates, prefixes, boundaries, strict=True)
            for text in (y.text[prefix.characters : boundary], y.text[boundary:])
        ]
        encoded = iter(self._encode(texts))
        answers, cached = [], {}
        for y, prefix, boundary in zip(candidates, prefixes, boundaries, strict=True):
            longer = _StablePrefix(boundary, prefix.tokens + next(encoded))
            cached[y.text] = longer
            answers.append(longer.tokens + next(encoded))
        self._prefixes = cached
        return answers

    def _stable_prefix(self, y: Hypothesis) -> _StablePrefix:
        """The cached prefix of this answer or of its parent, unless a stop string has cut the text shorter than it."""
        for text in (y.text, y.parent.text if y.parent else ""):
            prefix = self._prefixes.get(text)
            # The prefix is stable only while the boundary's space and the letter after it follow.
            if prefix is not None and y.text.startswith(text[: prefix.characters + 2]):
                return prefix
        return _StablePrefix()


def _last_word_boundary(text: str, start: int) -> int:
    """Index of the last space after `start` that stands between two letters, or `start`."""
    at = len(text) - 1
    while (at := text.rfind(" ", start + 1, at)) > 0:
        if text[at - 1].isalpha() and text[at + 1].isalpha():
            return at
    return start
