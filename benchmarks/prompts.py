"""Prompts of any length for the benchmarks: excerpts of a story."""

from __future__ import annotations

from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Tokens

_STEP = 17  # tokens between the beginnings of two excerpts
_OPENING = (
    "Once upon a time, in a small town between the mountains and the sea, there lived an old clockmaker who had never "
    "been on time for anything. "
)
_SENTENCES = (
    "In the {n} year of the long winter he wrote to his sister, who kept a lighthouse {n} miles to the north. ",
    "Nobody in the harbour believed the story of the {n} lamp, and yet every child could tell it by heart. ",
    "The baker, whose {n} son had gone to sea, opened the shop before dawn and left the door ajar for the cat. ",
    "On market days the square was full of voices, and the {n} bell of the church rang a little too late. ",
)
_NUMBERS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def story() -> str:
    """A text of some 800 words."""
    return _OPENING + "".join(sentence.format(n=number) for number in _NUMBERS for sentence in _SENTENCES)


def excerpt(tokenizer: HFTokenizer, size: int, number: int) -> Tokens:
    """Exactly `size` tokens. Excerpts of different numbers begin elsewhere, so that no prefix cache can help."""
    tokens = tokenizer.encode(story(), special_tokens=False)
    first = number * _STEP % (len(tokens) - size)
    return tokens[first : first + size]
