"""What one token is, byte for byte: tokenizers keep their vocabularies in ways of their own.

Byte-level vocabularies (GPT-2's, Llama 3's, Qwen's) write each byte as one printable character; SentencePiece's write a
space as `▁` and bytes that are no character as `<0xE2>`. Others have no rule here: then decoding the token tells.
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


def token_text_reader(tokenizer: PreTrainedTokenizerFast, rules: Mapping[str, Any]) -> Callable[[int], TokenText]:
    """`rules` is the tokenizer's own `tokenizer.json`. The reader never fails: an id without a token is no text."""
    added = {token["id"]: token for token in rules["added_tokens"]}
    to_bytes = _bytes_of(tokenizer, rules["decoder"])

    @lru_cache(maxsize=1 << 16)  # log-probabilities name the same few thousand tokens again and again
    def read(token: int) -> TokenText:
        if token in added:
            content: str = added[token]["content"]
            return TokenText(content, None if added[token]["special"] else content.encode())
        name = tokenizer.convert_ids_to_tokens(token)
        data = b"" if name is None else to_bytes(token, str(name))
        return TokenText(text_of(data), data)

    return read


def text_of(data: bytes) -> str | None:
    """None where the bytes are not whole characters."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _bytes_of(tokenizer: PreTrainedTokenizerFast, decoder: Mapping[str, Any] | None) -> Callable[[int, str], bytes]:
    steps = [] if decoder is None else decoder.get("decoders", [decoder])
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return lambda _, name: bytes(_BYTES[c] for c in name if c in _BYTES)
    if "ByteFallback" in kinds or "Metaspace" in kinds:
        return lambda _, name: _from_sentencepiece(name)
    return lambda token, _: str(tokenizer.decode([token])).encode()


def _from_sentencepiece(name: str) -> bytes:
    byte = _BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(_SPACE, " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's: printable bytes stand for themselves, the others for the characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()
