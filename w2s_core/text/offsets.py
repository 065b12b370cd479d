"""Token offsets: which characters of the decoded text each token stands for.

The text is known only by decoding, and one token may hold part of a character, or several characters and a part of
another. So tokens are collected into groups at whose end the text is complete. Where the bytes of a group's tokens make
the same text as decoding does, they give each token's offsets. Where they do not (WordPiece puts a space before a word,
say), the group is fed token by token, and a token that is still in doubt gets the offsets of its whole group.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass, replace

from w2s_core.interfaces import TokenDecoder
from w2s_core.text.detokenizer import detokenize, start_behind
from w2s_core.types import Tokens, TokenText

_utf8 = getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """A token and the characters [start, end) of the text that it stands for.

    `number` is its index in the sequence. `start` is the character that holds the token's first byte, `end` is one
    past the character that holds its last byte; so tokens that share a character overlap.
    """

    number: int
    token: int
    token_text: TokenText
    start: int
    end: int


class OffsetTracker:
    """Computes the spans of one sequence's tokens as it grows behind a `prompt`, whose text does not count.

    `verbatim`: special tokens appear in the text (`skip_special_tokens` is false).
    """

    def __init__(self, decoder: TokenDecoder, prompt: Tokens = (), *, verbatim: bool = False) -> None:
        self._decoder = decoder
        self._text_decoder = decoder.verbatim if verbatim else decoder
        self._verbatim = verbatim
        self._returned = 0  # tokens whose spans were returned
        self._state = start_behind(self._text_decoder, prompt)  # of those
        self._held: Tokens = ()  # the tokens behind those

    def feed(self, tokens: Sequence[int]) -> list[TokenSpan]:
        """Appends `tokens` and returns the spans that have become known, those of earlier tokens included.

        The last tokens' spans are held back while their text ends inside a character.
        """
        spans = self._feed_group(tokens)
        if spans is None and len(tokens) > 1:
            return [span for token in tokens for span in self._feed_group([token]) or ()]
        return spans or []

    def flush(self, length: int) -> list[TokenSpan]:
        """Returns the spans that were held back, in a text that ends after `length` characters."""
        group = self._held
        start = len(self._state.text)
        text = detokenize(self._text_decoder, self._state, group).text[start:length]
        token_texts = [self._decoder.token_text(token) for token in group]
        ranges, joined = self._character_ranges(token_texts)
        if not joined.startswith(text):
            ranges = [(0, len(text))] * len(group)
        return [_clipped(span, length) for span in self._spans(group, token_texts, ranges, start)]

    def _feed_group(self, tokens: Sequence[int]) -> list[TokenSpan] | None:
        """Returns the group's spans, None if they are not known yet.

        None if the text ends inside a character, or if several tokens were given and their bytes do not join to the
        decoded text. Several tokens are then to be fed again; a single one is held.
        """
        group = (*self._held, *tokens)
        state = detokenize(self._text_decoder, self._state, group)
        start = len(self._state.text)
        text = state.text[start:]
        token_texts = [self._decoder.token_text(token) for token in group]
        ranges, joined = self._character_ranges(token_texts)
        if len(tokens) > 1 and (state.pending or joined != text):
            return None
        if state.pending:
            self._held = group
            return None
        if joined != text:
            ranges = [(0, len(text))] * len(group)
            if len(group) == 1 and text:
                token_texts = [TokenText(text, text.encode())]
        spans = self._spans(group, token_texts, ranges, start)
        self._state, self._held = state, ()
        self._returned += len(group)
        return spans

    def _spans(
        self, group: Sequence[int], token_texts: Sequence[TokenText], ranges: Sequence[tuple[int, int]], start: int
    ) -> list[TokenSpan]:
        return [
            TokenSpan(self._returned + i, token, token_text, start + begin, start + end)
            for i, (token, token_text, (begin, end)) in enumerate(zip(group, token_texts, ranges, strict=True))
        ]

    def _character_ranges(self, token_texts: Sequence[TokenText]) -> tuple[list[tuple[int, int]], str]:
        """Returns each token's (start, end) in the text that all their bytes make, and that text."""
        decoder, parts, length = _utf8("replace"), list[str](), 0
        ranges: list[tuple[int, int]] = []
        for token_text in token_texts:
            data = self._bytes(token_text)
            parts.append(decoder.decode(data[:1]))
            length += len(parts[-1])
            incomplete = bool(decoder.getstate()[0])  # a character has begun, and its index is `length`
            start = length if incomplete or not data else length - 1
            parts.append(decoder.decode(data[1:]))
            length += len(parts[-1])
            ranges.append((start, length + bool(decoder.getstate()[0])))
        parts.append(decoder.decode(b"", final=True))
        return ranges, "".join(parts)

    def _bytes(self, token_text: TokenText) -> bytes:
        if token_text.bytes is not None:
            return token_text.bytes
        return (token_text.text or "").encode() if self._verbatim else b""


def _clipped(span: TokenSpan, length: int) -> TokenSpan:
    return replace(span, start=min(span.start, length), end=min(span.end, length))
