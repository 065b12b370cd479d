"""Retokenizing the new text gives the tokens of encoding the whole answer, for the demo's tokenizers and others."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import byte_tokenizer, sentencepiece_tokenizer
from w2s_core.demo.models import WEIGHTS
from w2s_core.text.retokenizer import Retokenizer
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Hypothesis

PROMPT = (70, 71)  # of two tokens with text
PIECES = st.text(st.sampled_from("abcd abcd  é1.,'s\n€🙂"), max_size=12)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HFTokenizer]:
    """The pair's own tokenizer, one whose letters merge, and one that does not split at words at all."""
    merging, whole = tmp_path_factory.mktemp("merging"), tmp_path_factory.mktemp("whole")
    byte_tokenizer(pairs=True).save_pretrained(merging)
    tokenizer: PreTrainedTokenizerFast = byte_tokenizer(pairs=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.save_pretrained(whole)
    return {
        "pair": HFTokenizer(str(WEIGHTS / "reviews-negative")),
        "merging": HFTokenizer(str(merging)),
        "whole": HFTokenizer(str(whole)),
    }


def test_which_tokenizers_may_be_read_in_parts(tokenizers: dict[str, HFTokenizer]) -> None:
    assert {name: tokenizer.splits_at_words for name, tokenizer in tokenizers.items()} == {
        "pair": True,
        "merging": True,
        "whole": False,
    }


@pytest.mark.parametrize("name", ["pair", "merging", "whole"])
@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(st.lists(PIECES, min_size=1, max_size=3), min_size=1, max_size=6), cut=st.integers(0, 5))
def test_what_is_read_in_parts_is_what_is_read_at_once(
    tokenizers: dict[str, HFTokenizer], name: str, pieces: list[list[str]], cut: int
) -> None:
    tokenizer = tokenizers[name]
    growing, beam = Retokenizer(tokenizer, PROMPT), [Hypothesis()]
    for chunk in pieces:
        candidates = [Hypothesis(text=y.text + piece, parent=y) for y in beam for piece in chunk]
        shorter = candidates[-1].text[: -cut or None]  # as a stop string cuts, even behind the parent's end
        candidates.append(Hypothesis(text=shorter, parent=candidates[-1].parent))
        assert growing.encode(candidates) == tokenizer.encode_continuations([y.text for y in candidates])
        beam = candidates[:2]


def test_an_answer_cut_shorter_than_its_parents_prefix_is_encoded_anew(tokenizers: dict[str, HFTokenizer]) -> None:
    """A stop string may begin in the parent's text, before the part that is not encoded again."""
    tokenizer, parent = tokenizers["merging"], Hypothesis(text="ab cd")
    growing = Retokenizer(tokenizer, PROMPT)
    growing.encode([parent])
    texts = ["a", "ab", "ab ", "ab c"]
    assert growing.encode([Hypothesis(text=text, parent=parent) for text in texts]) == tokenizer.encode_continuations(
        texts
    )


def test_only_what_is_new_is_read(tokenizers: dict[str, HFTokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, read = tokenizers["pair"], []
    real = tokenizer.encode_many
    monkeypatch.setattr(tokenizer, "encode_many", lambda texts: read.append(sum(map(len, texts))) or real(texts))
    growing, answer = Retokenizer(tokenizer, ()), Hypothesis()
    for _ in range(50):
        answer = Hypothesis(text=answer.text + " and a good film", parent=answer)
        growing.encode([answer])
    assert max(read) < 50


@pytest.mark.parametrize("why", ["add_prefix_space", "normalizer", "added token with a space"])
def test_other_tokenizers_encode_the_whole_text_each_time(tmp_path: Path, why: str) -> None:
    fast = byte_tokenizer(pairs=True)
    backend = fast.backend_tokenizer
    if why == "add_prefix_space":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif why == "normalizer":
        backend.normalizer = normalizers.Prepend("x")
    else:
        backend.add_tokens(["b c"])
    fast.save_pretrained(tmp_path)
    tokenizer = HFTokenizer(str(tmp_path))
    answer = Hypothesis(text="ab cd ab")
    assert Retokenizer(tokenizer, PROMPT).encode([answer]) == tokenizer.encode_continuations([answer.text])
    assert Retokenizer(tokenizer, ()).encode([answer]) == tokenizer.encode_many([answer.text])
    assert not tokenizer.splits_at_words


def test_the_large_models_tokenizer_too(tmp_path: Path) -> None:
    """SmolLM2 splits digits first: that must not matter."""
    tokenizer = byte_tokenizer()
    digits = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.backend_tokenizer.pre_tokenizer = digits
    tokenizer.save_pretrained(tmp_path)
    assert HFTokenizer(str(tmp_path)).splits_at_words


@pytest.mark.parametrize("kind", ["llama", "gemma", "metaspace"])
@settings(max_examples=100)
@given(pieces=st.lists(st.sampled_from(["the", " the", " cat", "a", " ", "\n", "|", "é", "🙂"]), max_size=6))
def test_an_answer_is_encoded_as_behind_its_prompt(
    tmp_path_factory: pytest.TempPathFactory, kind: str, pieces: list[str]
) -> None:
    """The oracle encodes prompt and answer together; where they merge, they have no tokens of their own."""
    folder = tmp_path_factory.mktemp(kind)
    sentencepiece_tokenizer(kind).save_pretrained(folder)
    tokenizer, text = HFTokenizer(str(folder)), "".join(pieces)
    prompt, whole = (tokenizer.encode(t, special_tokens=True) for t in ("the ca.", "the ca." + text))
    if whole[: len(prompt)] == prompt:
        assert Retokenizer(tokenizer, prompt).encode([Hypothesis(text=text)]) == [whole[len(prompt) :]]
    assert Retokenizer(tokenizer, ()).encode([Hypothesis(text=text)]) == [tokenizer.encode(text, special_tokens=False)]
