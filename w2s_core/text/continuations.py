"""Continuation encoder: encodes a text as it stands behind other text, not as the beginning of a text of its own.

SentencePiece tokenizers put a space before a text that stands alone, so an answer's first token would be another one
than behind its prompt. So the text is encoded behind a *guard*, a short text that merges with nothing, and the guard's
tokens are removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from w2s_core.types import Tokens

_GUARDS = ("\n", "|", "\x02", "\u00a7")
_PROBES = ("a", " a", "the", "é", "1")


class ContinuationEncoder:
    """Encodes continuations with a tokenizer whose `encode` takes several texts and adds no special tokens."""

    def __init__(self, encode: Callable[[Sequence[str]], list[Tokens]]) -> None:
        self._encode = encode
        self._guards = self._find_guards()

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of each text behind another one."""
        if not self._guards:
            return self._encode(texts)
        first, *others = self._guards
        found = [self._without_guard(first, tokens) for tokens in self._encode([first + text for text in texts])]
        return [
            self._encode_behind(others, text) if tokens is None else tokens
            for text, tokens in zip(texts, found, strict=True)
        ]

    def _encode_behind(self, guards: Sequence[str], text: str) -> Tokens:
        for guard in guards:
            [tokens] = self._encode([guard + text])
            if (rest := self._without_guard(guard, tokens)) is not None:
                return rest
        [alone] = self._encode([text])
        return alone

    def _without_guard(self, guard: str, tokens: Tokens) -> Tokens | None:
        """The tokens behind the guard's, None if the guard has merged with the text."""
        length = len(self._guards[guard])
        return tokens[length:] if tokens[:length] == self._guards[guard] else None

    def _find_guards(self) -> dict[str, Tokens]:
        """The guards that merge with no probe, with their tokens. None if the tokenizer needs no guard."""
        alone, guards = self._encode(_PROBES), dict[str, Tokens]()
        for guard in _GUARDS:
            tokens, *behind = self._encode([guard, *(guard + probe for probe in _PROBES)])
            if all(encoded[: len(tokens)] == tokens for encoded in behind):
                if [encoded[len(tokens) :] for encoded in behind] == alone:
                    return {}
                guards[guard] = tokens
        return guards
