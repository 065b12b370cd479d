"""Incremental detokenization equals decoding at once; stop strings are found across chunks; bad words become tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from tests.fakes import ByteTokenizer
from tests.tiny import BOS, EOS, TEMPLATE, byte_tokenizer
from w2s_core.engine.output import common_prefix
from w2s_core.errors import ConfigurationError, RequestError
from w2s_core.large.prompts import encode_prompt
from w2s_core.large.successors import SuccessorBuilder
from w2s_core.large.token_sampling import resolve_sampling
from w2s_core.text.detokenizer import DetokenizerState, detokenize
from w2s_core.text.stop_strings import find_stop_string, partial_stop_length
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import ChatPrompt, Hypothesis, SamplingParams, TextPrompt

BYTE_TOKENIZER = ByteTokenizer()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer(TEMPLATE).save_pretrained(folder)
    return HFTokenizer(str(folder))


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    borders = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in zip(borders, borders[1:], strict=False)]


@settings(max_examples=300)
@given(text=st.text(), cuts=st.lists(st.integers(0, 500)))
def test_decoding_in_pieces_equals_decoding_at_once(text: str, cuts: list[int]) -> None:
    decoded, so_far = DetokenizerState(), b""
    for piece in cut(text.encode(), cuts):
        so_far += piece
        longer = detokenize(BYTE_TOKENIZER, decoded, tuple(piece))  # type: ignore[arg-type]
        assert longer.text.startswith(decoded.text)
        assert longer.text == so_far.decode("utf-8", "ignore") or "\ufffd" in text
        decoded = longer
    assert decoded.text == text.rstrip("\ufffd")


@settings(max_examples=200)
@given(data=st.binary(max_size=40), cuts=st.lists(st.integers(0, 500)))
def test_bytes_that_are_no_text_end_the_same_however_they_came(data: bytes, cuts: list[int]) -> None:
    decoded = DetokenizerState()
    for piece in cut(data, cuts):
        decoded = detokenize(BYTE_TOKENIZER, decoded, tuple(piece))  # type: ignore[arg-type]
        assert not decoded.text.endswith("\ufffd")
    assert decoded.text == data.decode("utf-8", "replace").rstrip("\ufffd")


def test_half_a_character_is_held_back_but_what_stands_before_it_is_not() -> None:
    tokens = tuple("ab€".encode())
    decoded = detokenize(BYTE_TOKENIZER, DetokenizerState(), tokens[:-1])  # type: ignore[arg-type]
    assert decoded.text == "ab"
    assert detokenize(BYTE_TOKENIZER, decoded, tokens[-1:]).text == "ab€"  # type: ignore[arg-type]


@settings(max_examples=500)
@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 500)),
)
def test_a_stop_string_ends_the_answer_at_the_same_place_whatever_the_chunks(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    ends = [(i + len(s), i) for s in stops for i in range(len(text)) if text.startswith(s, i)]
    expected = text if not ends else text[: min(ends)[1]]
    successors = SuccessorBuilder(BYTE_TOKENIZER, (), SamplingParams(stop=tuple(stops)))  # type: ignore[arg-type]
    answer, shown = Hypothesis(), ""
    for piece in cut(text.encode(), cuts):
        answer = successors.build(answer, 0, tuple(piece), (-1.0,) * len(piece), ended=False)
        visible = (
            answer.text
            if answer.finished
            else answer.text[: len(answer.text) - partial_stop_length(answer.text, stops)]
        )
        assert visible.startswith(shown), "something sent was taken back"
        shown = visible
        if answer.finished:
            break
    assert answer.text == expected
    assert answer.finished == bool(ends)
    assert len(answer.tokens) == len(answer.logprobs) == len(expected.encode())


def test_an_answer_that_grows_token_by_token_is_not_decoded_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    text, longest = "a film, é and € " * 20, []
    real = BYTE_TOKENIZER.decode
    monkeypatch.setattr(
        BYTE_TOKENIZER, "decode", lambda tokens: longest.append(len(tokens)) or real(tokens), raising=True
    )
    successors = SuccessorBuilder(BYTE_TOKENIZER, (), SamplingParams())  # type: ignore[arg-type]
    start, tokens = Hypothesis(), tuple(text.encode())
    for size in range(1, len(tokens) + 1):
        for row in range(2):  # the second one draws the same, as at temperature 0
            grown = successors.build(start, row, tokens[:size], (-1.0,) * size, ended=False, already_decoded=size - 1)
            assert grown.text == text.encode()[:size].decode("utf-8", "ignore")
    assert max(longest) < 10
    assert len(successors._shown._states) < 3


def test_an_eos_behind_a_stop_string_is_dropped() -> None:
    """Both were drawn in one chunk. The answer is cut at the stop string, so the pair must not score the EOS."""
    successors = SuccessorBuilder(BYTE_TOKENIZER, (), SamplingParams(stop=("b",)))  # type: ignore[arg-type]
    answer = successors.build(Hypothesis(), 0, tuple(b"abc"), (-1.0,) * 4, ended=True, ending=EOS)
    assert (answer.text, answer.tokens, answer.finish_reason) == ("a", (97,), "stop")
    assert (answer.ended, answer.ending, answer.length, len(answer.logprobs)) == (False, None, 1, 1)


def test_finding_and_withholding() -> None:
    assert find_stop_string("hello END", 0, ["END", "x"]) == (6, 9)
    assert find_stop_string("hello EN", 0, ["END"]) is None
    assert find_stop_string("abc", 0, ["bc", "abc"]) == (0, 3)
    assert find_stop_string("xabc", 0, ["abcd", "ab"]) == (1, 3)
    assert partial_stop_length("hello EN", ["END"]) == 2
    assert partial_stop_length("hello", ["END"]) == 0
    assert partial_stop_length("aab", ["aabaab"]) == 3


@given(st.lists(st.text("ab", max_size=6), min_size=1, max_size=5))
def test_common_prefix(texts: list[str]) -> None:
    prefix = common_prefix(texts)
    assert all(t.startswith(prefix) for t in texts)
    assert all(common_prefix(texts, known) == prefix for known in range(len(prefix) + 1))
    longer = {t[: len(prefix) + 1] for t in texts}
    assert len(longer) > 1 or any(t == prefix for t in texts)


def test_the_tokenizer_renders_chats_and_names_its_tokens(tokenizer: HFTokenizer) -> None:
    tokens = tokenizer.encode_chat(ChatPrompt(({"role": "user", "content": "Hi"},)))
    assert tokenizer.decode(tokens) == "<user>Hi\n<assistant>"
    assert tokenizer.empty_prompt == (256,)
    assert tokenizer.eos == 257
    assert tokenizer.encode_continuations(["a", ""]) == [tokenizer.encode("a", special_tokens=False), ()]


def test_a_template_that_refuses_is_the_callers_error(tmp_path: Path) -> None:
    byte_tokenizer("{{ raise_exception('roles must alternate') }}").save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        HFTokenizer(str(tmp_path)).encode_chat(ChatPrompt(({"role": "user", "content": "Hi"},)))
    assert caught.value.param == "messages"


def test_a_folder_without_a_tokenizer_is_the_operators_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        HFTokenizer(str(tmp_path))


def test_special_tokens_are_added_and_shown_where_asked(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(TEMPLATE)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<bos> $A", special_tokens=[("<bos>", BOS)])
    tokenizer.save_pretrained(tmp_path)
    tokenizer = HFTokenizer(str(tmp_path))
    chat = ({"role": "user", "content": "Hi"},)
    for special in (True, False):
        raw = encode_prompt(tokenizer, TextPrompt("Hi", special_tokens=special))
        rendered = encode_prompt(tokenizer, ChatPrompt(chat, special_tokens=special))
        assert ((raw[0] == BOS), (rendered[0] == BOS)) == (special, special)
    assert encode_prompt(tokenizer, ChatPrompt(chat)) == rendered, "a template writes its own"
    assert encode_prompt(tokenizer, TextPrompt("Hi"))[0] == BOS
    assert tokenizer.decode((64, EOS, 65)) == "ab"
    assert tokenizer.verbatim.decode((64, EOS, 65)) == "a<eos>b"


def test_bad_words_are_tokens_with_and_without_a_space(tmp_path: Path) -> None:
    """Bytes and pairs of them: a space is a token of its own, so that a word is the same tokens behind it."""
    tokenizer = byte_tokenizer(pairs=True)
    tokenizer.save_pretrained(tmp_path)
    tokenizer = HFTokenizer(str(tmp_path))

    def words(*words: str, vocabulary: int = 300) -> tuple[tuple[int, ...], ...]:
        return resolve_sampling(SamplingParams(bad_words=words), tokenizer, vocabulary).bad_words

    def ids(text: str) -> tuple[int, ...]:
        return tokenizer.encode(text, special_tokens=False)

    assert words("ab", " ab", "x") == (ids("ab"), ids("x"))
    assert words("  ") == (ids("  "),)
    assert words("abx", vocabulary=200) == (), "tokens for which the model has no logits are never drawn"


class SpacedTokenizer(ByteTokenizer):
    """Token 300 + i is the word ` x` of byte i, as in byte-level BPE."""

    def encode(self, text: str, *, special_tokens: bool = False) -> tuple[int, ...]:
        return (300 + ord(text[1]),) if len(text) == 2 and text[0] == " " else super().encode(text)

    def encode_continuations(self, texts: list[str]) -> list[tuple[int, ...]]:
        return [self.encode(text) for text in texts]


def test_a_bad_word_that_is_another_token_behind_a_space_is_both() -> None:
    found = resolve_sampling(SamplingParams(bad_words=("b", "cd")), SpacedTokenizer(), 1000).bad_words  # type: ignore[arg-type]
    assert found == ((98,), (398,), (99, 100))


@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 500)),
    least=st.integers(0, 30),
    shown=st.booleans(),
)
def test_stop_strings_count_from_min_tokens_on_and_may_stay(
    text: str, stops: list[str], cuts: list[int], least: int, shown: bool
) -> None:
    ends = [(i + len(s), i) for s in stops for i in range(len(text)) if text.startswith(s, i) and i + len(s) > least]
    expected = text if not ends else text[: min(ends)[0 if shown else 1]]
    sampling = SamplingParams(stop=tuple(stops), min_tokens=least, include_stop_str_in_output=shown)
    successors = SuccessorBuilder(BYTE_TOKENIZER, (), sampling)  # type: ignore[arg-type]
    answer = Hypothesis()
    for piece in cut(text.encode(), cuts):
        answer = successors.build(answer, 0, tuple(piece), (-1.0,) * len(piece), ended=False)
        if answer.finished:
            break
    assert answer.text == expected
    assert answer.finished == bool(ends)
    assert len(answer.tokens) == len(answer.logprobs) == len(expected)
