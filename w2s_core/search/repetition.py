"""Counts the repeated word trigrams of growing answers, at the cost of their new text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_N = 3
# A word, or one character of a script without spaces between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer).
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[\w'’])+")
_APOSTROPHES = "'’"  # within words; those around a word are quotation marks

NGram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RepetitionState:
    """An answer's words as far as they are complete: its first `read` characters.

    `seen` are its n-grams, `repeats` how many of them had been there before, `last` its last n − 1 words.
    """

    read: int = 0
    seen: frozenset[NGram] = frozenset()
    repeats: int = 0
    last: NGram = ()


def count_repeats(text: str, state: RepetitionState | None = None) -> int:
    """The number of word trigrams of `text` that occurred before in it; case and punctuation do not count.

    `state` is that of an answer with which the text begins, if there is one.
    """
    known = _usable(text, state)
    repeats, new = known.repeats, set[NGram]()
    for ngram in _ngrams(known.last, _words(text, known.read)):
        repeats += ngram in known.seen or ngram in new
        new.add(ngram)
    return repeats


def advance(text: str, state: RepetitionState | None = None) -> RepetitionState:
    """The state of an answer whose text is `text`; its last word may still grow, so it is not read."""
    known = _usable(text, state)
    matches = list(_WORD.finditer(text, known.read))
    if matches and matches[-1].end() == len(text) and not re.match(f"[{_UNSPACED}]", matches[-1][0]):
        matches.pop()
    words = _normalised(match[0] for match in matches)
    seen, repeats = set(known.seen), known.repeats
    for ngram in _ngrams(known.last, words):
        repeats += ngram in seen
        seen.add(ngram)
    read = matches[-1].end() if matches else known.read
    return RepetitionState(read, frozenset(seen), repeats, (*known.last, *words)[-(_N - 1) :])


def _usable(text: str, state: RepetitionState | None) -> RepetitionState:
    """The state, unless a stop string has cut the text behind what it has read."""
    return RepetitionState() if state is None or len(text) < state.read else state


def _words(text: str, start: int) -> list[str]:
    return _normalised(_WORD.findall(text, start))


def _normalised(words: Iterable[str]) -> list[str]:
    return [word for word in (word.strip(_APOSTROPHES).lower() for word in words) if word]


def _ngrams(before: Sequence[str], words: Sequence[str]) -> Iterable[NGram]:
    """The n-grams that end in each of `words`, which follow the words `before`."""
    row = (*before, *words)
    return (row[end - _N : end] for end in range(max(_N, len(before) + 1), len(row) + 1))
