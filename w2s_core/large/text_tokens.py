"""Token ids for providers that return tokens as text, as OpenAI's public API does."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from w2s_core.text.detokenizer import REPLACEMENT
from w2s_core.text.token_bytes import decode_utf8
from w2s_core.types import TokenText

_BYTES = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")  # how OpenAI writes a token that is not whole characters


def token_id(token: bytes) -> int:
    """The id of a token: its bytes, read as a number behind a leading 1.

    So ids need no table, which would have to forget some day, and they hold as long as anybody keeps them.
    """
    return int.from_bytes(b"\x01" + token)


def token_bytes(token: int) -> bytes:
    """The bytes of the token with this id."""
    return token.to_bytes((token.bit_length() + 7) // 8)[1:]


class TextTokenDecoder:
    """The `TokenDecoder` of `token_id`'s ids."""

    @property
    def verbatim(self) -> TextTokenDecoder:
        """The same decoder: whether special tokens are text is the provider's choice."""
        return self

    def token_text(self, token: int) -> TokenText:
        """As `HFTokenizer.token_text`."""
        data = token_bytes(token)
        return TokenText(decode_utf8(data), data)

    def decode(self, tokens: Sequence[int]) -> str:
        """As `HFTokenizer.decode`."""
        return b"".join(map(token_bytes, tokens)).decode("utf-8", "replace")


def token_bytes_of_choice(tokens: Sequence[str], text: str) -> list[bytes]:
    """Returns the bytes of each token of a choice whose text is `text`.

    Some providers write half a character as U+FFFD or as nothing. Where the tokens do not join to the text, it is
    divided evenly among them, so that at least their number is right. Half a surrogate pair becomes "?".
    """
    text = text.encode("utf-8", "replace").decode()
    encoded = [bytes_of(token) for token in tokens]
    if _complete(b"".join(encoded).decode("utf-8", "replace")) == _complete(text):
        return encoded
    if encoded and b"".join(encoded[:-1]).decode("utf-8", "replace") == text:  # the last one is EOS, which is not text
        return [*encoded[:-1], b""]
    complete, count = _complete(text), len(encoded)
    return [complete[i * len(complete) // count : (i + 1) * len(complete) // count].encode() for i in range(count)]


def whole_character_tokens(tokens: Sequence[bytes], length: int) -> int:
    """How many of the first tokens to keep so that the last one ends a character.

    The fewest such number ≥ `length`, because a rule that looks no further than it keeps does not change how likely a
    text is. Where there is none, the largest below `length`, which is 0 if no token ends a character. Bytes that are
    not UTF-8 count as characters. An empty token is the beginning of the next one's character, as vLLM writes it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    kept = 0
    for count, token in enumerate(tokens, start=1):
        decoder.decode(token)
        if token and not decoder.getstate()[0]:
            kept = count
            if count >= length:
                break
    return kept


def chunk_size(tokens: Sequence[bytes], length: int, room: int, *, ended: bool) -> tuple[int, bool]:
    """Returns how many of a choice's tokens belong to a chunk of `length` tokens, and whether it is ended.

    `ended`: EOS follows `tokens`. It counts as a token, so it is drawn anew where the chunk ends before it.
    """
    if ended and len(tokens) < length:
        return len(tokens), True
    kept = whole_character_tokens(tokens[:room], length)
    if kept >= length:
        return kept, False
    if len(tokens) >= room:  # the answer ends here, inside a character
        return room, False
    # Otherwise some tokens in a row hold the end of one character and the beginning of the next.
    return (len(tokens), True) if ended else (kept, False)


def bytes_of(token: str) -> bytes:
    """The bytes of a token as completions write it: text, or OpenAI's `bytes:\\xe2\\x98`."""
    escaped = _BYTES.fullmatch(token)
    return bytes.fromhex(escaped[1].replace("\\x", "")) if escaped else token.encode("utf-8", "replace")


def _complete(text: str) -> str:
    return text.rstrip(REPLACEMENT)
