"""Token ids for providers that tell tokens by their text alone."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from w2s_core.errors import UpstreamError
from w2s_core.text.token_bytes import decode_utf8
from w2s_core.types import Tokens, TokenText

_BYTES = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")  # OpenAI's way to write a token that is no text by itself
_INCOMPLETE = "\ufffd"
_MOST_PIECES = 2**22


class TextTokenTable:
    """One provider's tokens: an id for each distinct piece of text, in the order of their coming."""

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._pieces: list[bytes] = []

    def intern(self, pieces: Sequence[bytes]) -> Tokens:
        """Equal ids are equal pieces. Raises UpstreamError when there are more than any vocabulary has."""
        for piece in pieces:
            if len(self._pieces) >= _MOST_PIECES:
                raise UpstreamError("The provider sends more distinct tokens than any vocabulary has.")
            if piece not in self._ids:
                self._ids[piece] = len(self._pieces)
                self._pieces.append(piece)
        return tuple(self._ids[piece] for piece in pieces)

    @property
    def verbatim(self) -> TextTokenTable:
        """Special tokens are text here or nothing, as the provider has it."""
        return self

    def token_text(self, token: int) -> TokenText:
        """As `HFTokenizer.piece`."""
        data = self._pieces[token]
        return TokenText(decode_utf8(data), data)

    def decode(self, tokens: Sequence[int]) -> str:
        """As `HFTokenizer.decode`."""
        return b"".join(self._pieces[token] for token in tokens).decode("utf-8", "replace")


def token_bytes_of_choice(tokens: Sequence[str], text: str) -> list[bytes]:
    """The bytes of each token of a choice whose text is `text`. Where the provider's token texts do not join to that
    (some write half a character as U+FFFD or as nothing), it is dealt out among them evenly: the count is right."""
    pieces = [bytes_of(token) for token in tokens]
    if _complete(b"".join(pieces).decode("utf-8", "replace")) == _complete(text):
        return pieces
    if pieces and b"".join(pieces[:-1]).decode("utf-8", "replace") == text:  # and then EOS, which is no text
        return [*pieces[:-1], b""]
    complete, count = _complete(text), len(pieces)
    return [complete[i * len(complete) // count : (i + 1) * len(complete) // count].encode() for i in range(count)]


def whole_character_tokens(pieces: Sequence[bytes], length: int) -> int:
    """How many of the pieces to keep so that none ends inside a character: the most up to `length`, or else the fewest
    beyond it, or 0. Bytes that are no UTF-8 at all count as characters; a piece that is nothing is the beginning of the
    next one's character, as vLLM writes it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    kept = 0
    for count, piece in enumerate(pieces, start=1):
        decoder.decode(piece)
        if piece and not decoder.getstate()[0]:
            if count > length and kept:
                break
            kept = count
    return kept


def bytes_of(token: str) -> bytes:
    """Of a token as completions show it."""
    written = _BYTES.fullmatch(token)
    return bytes.fromhex(written[1].replace("\\x", "")) if written else token.encode("utf-8", "replace")


def _complete(text: str) -> str:
    return text.rstrip(_INCOMPLETE)
