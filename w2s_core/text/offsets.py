"""Where each token stands in the text that a sequence of tokens decodes to.

Only decoding tells the text, and a token may hold a part of a character, or several and a part. So tokens are read in
groups at whose end the text is complete. A group's bytes, where the vocabulary tells them and they give the same text,
say where in it each token begins and ends; else (a tokenizer that drops a space at the beginning, say) the group is
read token by token, and what is still in doubt stands for the whole of its text.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass, replace

from w2s_core.interfaces import TokenDecoder
from w2s_core.text.detokenizer import DetokenizerState, detokenize
from w2s_core.types import TokenText

_utf8 = getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """`number` counts the sequence's tokens. `start` is the character in which the token's first byte falls, `end` is
    behind the one in which its last byte falls."""

    number: int
    token: int
    piece: TokenText
    start: int
    end: int


class OffsetTracker:
    """Reads one sequence as it grows. `verbatim`: special tokens show in its text."""

    def __init__(self, decoder: TokenDecoder, *, verbatim: bool = False) -> None:
        self._decoder = decoder
        self._text_decoder = decoder.verbatim if verbatim else decoder
        self._verbatim = verbatim
        self._tokens: list[int] = []
        self._settled = DetokenizerState()
        self._placed = 0

    def place(self, tokens: Sequence[int]) -> list[TokenSpan]:
        """The places of these tokens, and of those that waited for them; the last ones may have to wait for more."""
        found = self._try(tokens)
        if found is None and len(tokens) > 1:
            return [place for token in tokens for place in self._try([token]) or ()]
        return found or []

    def rest(self, length: int) -> list[TokenSpan]:
        """The places of those that still wait, in a text that ends after `length` characters."""
        group = self._tokens[self._placed :]
        start = len(self._settled.text)
        text = detokenize(self._text_decoder, self._settled, self._tokens).text[start:length]
        pieces = [self._decoder.token_text(token) for token in group]
        spans, decoded = self._spans(pieces)
        if not decoded.startswith(text):
            spans = [(0, len(text))] * len(group)
        return [_clipped(place, length) for place in self._places(group, pieces, spans, start)]

    def _try(self, tokens: Sequence[int]) -> list[TokenSpan] | None:
        """None where the text is not complete, or, of several tokens, where the bytes say something else."""
        whole = self._tokens
        whole += tokens
        decoded = detokenize(self._text_decoder, self._settled, whole)
        if decoded.read < len(whole):
            if len(tokens) > 1:
                del whole[-len(tokens) :]
            return None
        group = whole[self._placed :]
        start = len(self._settled.text)
        text = decoded.text[start:]
        pieces = [self._decoder.token_text(token) for token in group]
        spans, told = self._spans(pieces)
        if told != text:
            if len(tokens) > 1:
                del whole[-len(tokens) :]
                return None
            spans = [(0, len(text))] * len(group)
            if len(group) == 1 and text:
                pieces = [TokenText(text, text.encode())]
        self._settled = decoded
        places = self._places(group, pieces, spans, start)
        self._placed = len(whole)
        return places

    def _places(
        self, group: Sequence[int], pieces: Sequence[TokenText], spans: Sequence[tuple[int, int]], start: int
    ) -> list[TokenSpan]:
        return [
            TokenSpan(self._placed + i, token, piece, start + span[0], start + span[1])
            for i, (token, piece, span) in enumerate(zip(group, pieces, spans, strict=True))
        ]

    def _spans(self, pieces: Sequence[TokenText]) -> tuple[list[tuple[int, int]], str]:
        """Where each piece begins and ends in the text that all their bytes make, and that text."""
        decoder, parts, length = _utf8("replace"), list[str](), 0
        spans: list[tuple[int, int]] = []
        for piece in pieces:
            data = self._bytes(piece)
            parts.append(decoder.decode(data[:1]))
            length += len(parts[-1])
            half = bool(decoder.getstate()[0])  # of a character, whose number then is `length`
            start = length if half or not data else length - 1
            parts.append(decoder.decode(data[1:]))
            length += len(parts[-1])
            spans.append((start, length + bool(decoder.getstate()[0])))
        parts.append(decoder.decode(b"", final=True))
        return spans, "".join(parts)

    def _bytes(self, piece: TokenText) -> bytes:
        if piece.bytes is not None:
            return piece.bytes
        return (piece.text or "").encode() if self._verbatim else b""


def _clipped(place: TokenSpan, length: int) -> TokenSpan:
    return replace(place, start=min(place.start, length), end=min(place.end, length))
