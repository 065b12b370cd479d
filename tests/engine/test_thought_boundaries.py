"""Where thoughts end and an answer begins: tokens that hold text of both, and the blanks between them."""

from __future__ import annotations

from collections.abc import Sequence

from tests.engine.test_thoughts import ask, thinking
from tests.fakes import EOS, ByteTokenizer, fake_engine
from w2s_core.types import SamplingParams, Tokens


class WideToken(ByteTokenizer):
    """Its token 1 is the end of a marker and the beginning of an answer."""

    verbatim = property(lambda self: self)

    def decode(self, tokens: Sequence[int]) -> str:
        return super().decode([byte for token in tokens for byte in (b">ab" if token == 1 else [token])])


class BlankToken(ByteTokenizer):
    """Its token 1 is a blank and a letter, so that no blank before an answer can be kept with its thoughts."""

    verbatim = property(lambda self: self)

    def decode(self, tokens: Sequence[int]) -> str:
        return super().decode([byte for token in tokens for byte in (b" a" if token == 1 else [token])])


async def test_a_token_that_ends_the_thoughts_and_begins_the_answer() -> None:
    """The answer is drawn anew behind the marker, so nothing of it is lost or comes twice."""
    large = thinking(lambda tokens: {b"xyz"[len(tokens)] if len(tokens) < 3 else EOS: 1.0}, b"<think>Hm.</think\x01")
    large.decoder, opened, open_ = WideToken(), [], large.open

    def watching(prompt: Tokens, sampling: SamplingParams, *, rows: int) -> object:
        opened.append(large.decoder.decode(prompt))
        return open_(prompt, sampling, rows=rows)

    large.open = watching  # type: ignore[method-assign, assignment]
    found = await ask(fake_engine(large), "guided")
    assert (found.thoughts, found.texts) == ({0: "Hm."}, {0: "xyz"})
    assert opened[1] == f"{opened[0]}<think>Hm.</think>"


async def test_blanks_behind_thoughts_are_no_part_of_the_answer() -> None:
    large = thinking(
        lambda tokens: {ord(" ") if len(tokens) < 2 else EOS if len(tokens) > 4 else 97: 1.0}, b"<think>Hm.</think>\x01"
    )
    large.decoder = BlankToken()
    found = await ask(fake_engine(large), with_tokens=True)
    assert (found.thoughts, found.texts) == ({0: "Hm."}, {0: "a  aaa"})
