"""Answers decoded behind their prompt, whatever the tokenizer: byte-level, byte fallback, Metaspace and WordPiece.

The oracle decodes the whole sequence at once: an answer's text is that of prompt and answer without that of the prompt.

    make test ARGS="-m slow tests/text/test_tokenizer_families.py"    # 24,000 examples, minutes
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.tiny import BOS, byte_tokenizer, sentencepiece_tokenizer, wordpiece_tokenizer
from w2s_core.engine.events import ChoiceFinished, TextCommitted
from w2s_core.engine.output import TokenStreamer
from w2s_core.large.successors import SuccessorBuilder
from w2s_core.structured.grammar_compiling import compile_grammar, new_matcher, new_tokenizer
from w2s_core.text.detokenizer import detokenize, start_behind
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import GrammarKind, Hypothesis, SamplingParams, Tokens

FAMILIES = ("bytes", "merging bytes", "llama", "gemma", "metaspace", "wordpiece")
GRAMMARS: list[tuple[GrammarKind, str]] = [
    ("choice", '["🙂🙂", " the cat", "a"]'),
    ("json", '{"type": "object", "properties": {"é": {"type": "string", "maxLength": 5}}, "required": ["é"]}'),
    ("regex", "( the| cat|🙂|é)+x"),
]
TEXTS = st.lists(
    st.sampled_from(["the", " the", " cat", " a", "a", "  ", " ", "🙂", "é", "€", "\n", ".", "x"]), max_size=8
)


def build(family: str) -> PreTrainedTokenizerFast:
    match family:
        case "bytes" | "merging bytes":
            return byte_tokenizer(pairs=family != "bytes")
        case "wordpiece":
            return wordpiece_tokenizer()
    return sentencepiece_tokenizer(family)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HFTokenizer]:
    root = tmp_path_factory.mktemp("tokenizers")
    for family in FAMILIES:
        build(family).save_pretrained(root / family)
    return {family: HFTokenizer(str(root / family)) for family in FAMILIES}


def any_tokens(tokenizer: HFTokenizer) -> st.SearchStrategy[Tokens]:
    """Tokens of texts, with special tokens among them, and tokens at random but for bytes that are no text."""
    special = [token for token in range(tokenizer.size) if tokenizer.is_special(token)]
    texts = TEXTS.map(lambda parts: tokenizer.encode("".join(parts), special_tokens=False))
    whole = [t for t in range(tokenizer.size) if tokenizer.token_text(t).text is not None and t not in special]
    pieces = st.one_of(
        texts, st.lists(st.sampled_from(whole), max_size=3).map(tuple), st.sampled_from(special).map(lambda t: (t,))
    )
    return st.lists(pieces, max_size=4).map(lambda parts: tuple(token for part in parts for token in part))


def text_behind(tokenizer: HFTokenizer, prompt: Tokens, answer: Tokens) -> str:
    """The text of the longest beginning of the answer that ends no character halfway."""
    for size in range(len(answer), -1, -1):
        whole = tokenizer.decode(prompt + answer[:size])
        if not whole.endswith("\ufffd"):
            return whole[len(tokenizer.decode(prompt)) :]
    return ""


def chunks_of(tokens: Tokens, data: st.DataObject) -> list[Tokens]:
    borders = sorted({*data.draw(st.lists(st.integers(0, len(tokens)), max_size=6)), 0, len(tokens)})
    return [tokens[a:b] for a, b in zip(borders, borders[1:], strict=False)]


def some_prompt(tokenizer: HFTokenizer, data: st.DataObject) -> Tokens:
    return data.draw(st.sampled_from([(), tokenizer.empty_prompt])) + data.draw(any_tokens(tokenizer))


def structured_tokens(tokenizer: HFTokenizer, grammar: str, data: st.DataObject) -> Tokens:
    """An answer, or the beginning of one, that follows the grammar, of any tokens that it allows."""
    matcher = new_matcher(new_tokenizer(tokenizer.tokenizer_json, []), grammar)
    tokens: list[int] = []
    while len(tokens) < 24 and not matcher.is_stopped():
        allowed = [t for t in range(tokenizer.size) if matcher.validate_tokens([t]) and not tokenizer.is_special(t)]
        if not allowed:
            break
        tokens.append(data.draw(st.sampled_from(allowed)))
        assert matcher.consume_token(tokens[-1])
    return tuple(tokens)


@pytest.mark.parametrize("verbatim", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=100)
@given(data=st.data())
def test_an_answer_decodes_as_behind_its_prompt_at_every_cut(
    tokenizers: dict[str, HFTokenizer], family: str, verbatim: bool, data: st.DataObject
) -> None:
    check_every_cut(tokenizers, family, verbatim, data)


@pytest.mark.slow
@pytest.mark.parametrize("verbatim", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=1000)
@given(data=st.data())
def test_many_answers_decode_as_behind_their_prompt_at_every_cut(
    tokenizers: dict[str, HFTokenizer], family: str, verbatim: bool, data: st.DataObject
) -> None:
    check_every_cut(tokenizers, family, verbatim, data)


def check_every_cut(tokenizers: dict[str, HFTokenizer], family: str, verbatim: bool, data: st.DataObject) -> None:
    tokenizer = tokenizers[family].verbatim if verbatim else tokenizers[family]
    prompt = some_prompt(tokenizer, data)
    answer = data.draw(any_tokens(tokenizer))
    assume("\ufffd" not in tokenizer.decode(prompt))
    assume("\ufffd" not in tokenizer.decode(prompt + answer))
    state, read = start_behind(tokenizer, prompt), 0
    assert state.text == ""
    for chunk in chunks_of(answer, data):
        longer = detokenize(tokenizer, state, chunk)
        assert longer.text.startswith(state.text)
        state, read = longer, read + len(chunk)
        assert state.text == text_behind(tokenizer, prompt, answer[:read])
        one_by_one = start_behind(tokenizer, prompt)
        for token in answer[:read]:
            one_by_one = detokenize(tokenizer, one_by_one, (token,))
        assert one_by_one.text == state.text


def grow(
    tokenizer: HFTokenizer, prompt: Tokens, chunks: Sequence[Tokens], sampling: SamplingParams
) -> tuple[Hypothesis, str, list[int]]:
    """The answer of these chunks, the text that was streamed, and the offsets of its tokens."""
    successors = SuccessorBuilder(tokenizer, prompt, sampling)
    streamer = TokenStreamer(0, sampling, tokenizer, prompt)
    y, streamed, offsets = Hypothesis(), "", list[int]()
    for chunk in chunks:
        y = successors.build(y, 0, chunk, (-1.0,) * len(chunk), ended=False)
        for event in streamer.commit([y]):
            streamed += event.text
            offsets += [token.offset for token in event.tokens]
        if y.finished:
            break
    for last in streamer.finish(y, guided=False):
        if isinstance(last, TextCommitted):
            streamed += last.text
        assert isinstance(last, TextCommitted | ChoiceFinished)
        offsets += [token.offset for token in last.tokens]
    return y, streamed, offsets


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=100)
@given(data=st.data())
def test_streams_stop_strings_and_offsets_hold_at_every_cut(
    tokenizers: dict[str, HFTokenizer], family: str, data: st.DataObject
) -> None:
    check_stream(tokenizers[family], data.draw(any_tokens(tokenizers[family])), data)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=1000)
@given(data=st.data())
def test_many_streams_hold_at_every_cut(tokenizers: dict[str, HFTokenizer], family: str, data: st.DataObject) -> None:
    check_stream(tokenizers[family], data.draw(any_tokens(tokenizers[family])), data)


@pytest.mark.parametrize("kind_source", GRAMMARS, ids=str)
@pytest.mark.parametrize("family", FAMILIES[:-1])  # llguidance reads no WordPiece
@settings(max_examples=10)
@given(data=st.data())
def test_structured_answers_hold_at_every_cut(
    tokenizers: dict[str, HFTokenizer], family: str, kind_source: tuple[GrammarKind, str], data: st.DataObject
) -> None:
    check_structured(tokenizers[family], kind_source, data)


@pytest.mark.slow
@pytest.mark.parametrize("kind_source", GRAMMARS, ids=str)
@pytest.mark.parametrize("family", FAMILIES[:-1])
@settings(max_examples=400)
@given(data=st.data())
def test_many_structured_answers_hold_at_every_cut(
    tokenizers: dict[str, HFTokenizer], family: str, kind_source: tuple[GrammarKind, str], data: st.DataObject
) -> None:
    check_structured(tokenizers[family], kind_source, data)


def check_structured(tokenizer: HFTokenizer, kind_source: tuple[GrammarKind, str], data: st.DataObject) -> None:
    """The text is a beginning of one that the grammar allows, as another tokenizer reads it."""
    grammar = compile_grammar(*kind_source)
    text = check_stream(tokenizer, structured_tokens(tokenizer, grammar, data), data)
    reader = new_tokenizer(byte_tokenizer().backend_tokenizer.to_str(), [])
    tokens = reader.tokenize_str(text)
    assert new_matcher(reader, grammar).try_consume_tokens(tokens) == len(tokens)


def check_stream(tokenizer: HFTokenizer, answer: Tokens, data: st.DataObject) -> str:
    """Returns the answer's text."""
    prompt = data.draw(any_tokens(tokenizer)) or (3,)
    assume("\ufffd" not in tokenizer.decode(prompt))
    assume(not tokenizer.decode(prompt + answer).rstrip("\ufffd").count("\ufffd"))
    stops = data.draw(st.sampled_from([(), ("the",), (" a", "🙂"), (" ",), ("t c",)]))
    sampling = SamplingParams(stop=stops)
    y, streamed, offsets = grow(tokenizer, prompt, chunks_of(answer, data), sampling)
    whole = text_behind(tokenizer, prompt, answer)
    ends = [(at + len(stop), at) for stop in stops if (at := whole.find(stop)) >= 0]
    assert y.text == streamed == (whole if not ends else whole[: min(ends)[1]])
    assert y.finished == bool(ends)
    assert len(offsets) == len(y.tokens)
    assert offsets == sorted(offsets)
    for i, offset in enumerate(offsets):
        before = text_behind(tokenizer, prompt, y.tokens[:i])
        assert offset >= min(len(before) - 1, len(y.text)), "a token stands before the text of those before it"
        assert offset <= len(y.text)
    return y.text


def test_a_space_between_prompt_and_answer_is_kept(tokenizers: dict[str, HFTokenizer]) -> None:
    for family in ("llama", "gemma", "metaspace"):
        tokenizer = tokenizers[family]
        a = tokenizer.vocabulary["\u2581a"]
        prompt = tokenizer.encode("the cat", special_tokens=False)
        y, streamed, offsets = grow(tokenizer, prompt, [(a, a), (a,)], SamplingParams())
        assert (y.text, streamed, offsets) == (" a a a", " a a a", [0, 2, 4])


def test_a_chunk_that_ends_inside_a_character_keeps_those_before_it(tokenizers: dict[str, HFTokenizer]) -> None:
    for family in FAMILIES[:-1]:
        tokenizer = tokenizers[family]
        prompt = tokenizer.encode("ab", special_tokens=False)
        smiles = tokenizer.encode("ab🙂🙂", special_tokens=False)[len(prompt) :]
        assert len(smiles) == 8
        for length in range(1, 7):
            chunks = [smiles[:6][i : i + length] for i in range(0, 6, length)]
            y, streamed, _ = grow(tokenizer, prompt, chunks, SamplingParams())
            assert (y.text, streamed) == ("🙂", "🙂")


def test_special_tokens_do_not_part_a_word_from_its_space(tokenizers: dict[str, HFTokenizer], tmp_path: Path) -> None:
    """Many of them in a row, in the prompt as in the answer."""
    for family in ("llama", "gemma", "metaspace"):
        tokenizer = tokenizers[family]
        a = tokenizer.vocabulary["\u2581a"]
        y, *_ = grow(tokenizer, (a, *(BOS,) * 50), [(a, *(BOS,) * 50), (BOS,) * 40, (a,)], SamplingParams())
        assert y.text == " a a"
