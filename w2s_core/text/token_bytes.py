"""Text and bytes of single tokens, for the vocabularies of byte-level BPE and SentencePiece.

Byte-level vocabularies (GPT-2's, Llama 3's, Qwen's) write each byte as one printable character. SentencePiece
vocabularies write a space as `▁`, and bytes that are not whole characters as `<0xE2>`. For others the token is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from w2s_core.types import TokenText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def build_token_text_lookup(tokenizer: PreTrainedTokenizerFast, rules: Mapping[str, Any]) -> Callable[[int], TokenText]:
    """Returns a function from a token id to its text and bytes. `rules` is the parsed `tokenizer.json`.

    The function never fails: an id that the vocabulary does not have is an empty text.
    """
    added = {token["id"]: token for token in rules["added_tokens"]}
    to_bytes = _bytes_function(tokenizer, rules["decoder"])

    @lru_cache(maxsize=1 << 16)  # log-probabilities name the same few thousand tokens again and again
    def look_up(token: int) -> TokenText:
        if token in added:
            content: str = added[token]["content"]
            return TokenText(content, None if added[token]["special"] else content.encode())
        name = tokenizer.convert_ids_to_tokens(token)
        data = b"" if name is None else to_bytes(token, str(name))
        return TokenText(decode_utf8(data), data)

    return look_up


def decode_utf8(data: bytes) -> str | None:
    """Decodes UTF-8; None where the bytes are not whole characters."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _bytes_function(
    tokenizer: PreTrainedTokenizerFast, decoder: Mapping[str, Any] | None
) -> Callable[[int, str], bytes]:
    """Returns the function from (token id, name in the vocabulary) to the token's bytes."""
    steps = [] if decoder is None else decoder.get("decoders", [decoder])
    step_types = {step["type"] for step in steps}
    if "ByteLevel" in step_types:
        return lambda _, name: bytes(_BYTES[c] for c in name if c in _BYTES)
    if "ByteFallback" in step_types or "Metaspace" in step_types:
        return lambda _, name: _from_sentencepiece(name)
    return lambda token, _: str(tokenizer.decode([token])).encode()


def _from_sentencepiece(name: str) -> bytes:
    byte = _BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(_SPACE, " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's `bytes_to_unicode`, inverted: printable bytes stand for themselves, the others for U+0100 and on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()
