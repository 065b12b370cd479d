"""Token offsets are exact whatever a token's bytes, and the same streamed and at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.fakes import EOS, ByteTokenizer
from tests.tiny import byte_tokenizer
from w2s_core.engine.events import ChoiceFinished, TextCommitted, TokenInfo
from w2s_core.engine.output import TokenStreamer, prompt_token_infos
from w2s_core.large.successors import SuccessorBuilder
from w2s_core.search.randomness import root_key
from w2s_core.text.offsets import OffsetTracker, TokenSpan
from w2s_core.text.token_bytes import decode_utf8
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Hypothesis, PromptLogprobs, SamplingParams, TokenText


class BytesTokenizer:
    """Tokens are any byte strings: id i is the i-th piece; EOS is special."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    @property
    def verbatim(self) -> BytesTokenizer:
        return self

    def decode(self, tokens: list[int]) -> str:
        return b"".join(self.pieces[t] for t in tokens if t != EOS).decode("utf-8", "replace")

    def token_text(self, token: int) -> TokenText:
        return (
            TokenText("<eos>", None) if token == EOS else TokenText(decode_utf8(self.pieces[token]), self.pieces[token])
        )


TEXTS = st.text(st.sampled_from("ab é€😀\ufffd"), max_size=12)


@st.composite
def cut_texts(draw: st.DrawFn, data: st.SearchStrategy[bytes]) -> tuple[list[bytes], list[list[int]]]:
    """Pieces of some bytes, and a division of the pieces into chunks."""
    whole = draw(data)
    cuts = sorted({*draw(st.lists(st.integers(0, len(whole)))), 0, len(whole)})
    pieces = [whole[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    borders = sorted({*draw(st.lists(st.integers(0, len(pieces)))), 0, len(pieces)})
    return pieces, [list(range(a, b)) for a, b in zip(borders, borders[1:], strict=False)]


ANY = cut_texts(st.one_of(TEXTS.map(str.encode), st.binary(max_size=12)))


def places(tokenizer: BytesTokenizer, chunks: list[list[int]]) -> list[TokenSpan]:
    tracker = OffsetTracker(tokenizer)  # type: ignore[arg-type]
    spans = [span for chunk in chunks for span in tracker.feed(chunk)]
    return spans + tracker.flush(len(tokenizer.decode([t for chunk in chunks for t in chunk])))


@settings(max_examples=400)
@given(cut=ANY)
def test_every_whole_token_stands_where_its_text_stands(cut: tuple[list[bytes], list[list[int]]]) -> None:
    tokenizer, chunks = BytesTokenizer(cut[0]), cut[1]
    text = tokenizer.decode(list(range(len(cut[0]))))
    found = places(tokenizer, chunks)
    assert [place.token for place in found] == list(range(len(cut[0])))
    assert [place.number for place in found] == list(range(len(cut[0])))
    for place in found:
        if place.token_text.text is not None:
            assert text[place.start : place.end] == place.token_text.text
        else:
            assert place.start < place.end
    assert [p.start for p in found] == sorted(p.start for p in found)
    assert places(tokenizer, [[i] for i in range(len(cut[0]))]) == found, "it does not matter how they came"


@settings(max_examples=400)
@given(cut=cut_texts(TEXTS.map(str.encode)))
def test_a_part_of_a_character_stands_where_the_character_stands(cut: tuple[list[bytes], list[list[int]]]) -> None:
    text, at = b"".join(cut[0]).decode(), 0
    starts = [len(text[:i].encode()) for i in range(len(text))]
    for place in places(BytesTokenizer(cut[0]), cut[1]):
        assert place.start == max(i for i, start in enumerate(starts) if start <= at)
        at += len(cut[0][place.token])


def writings(
    tokenizer: BytesTokenizer, chunks: list[list[int]], sampling: SamplingParams, *, ended: bool
) -> list[object]:
    """The events of an answer that grows by these chunks."""
    successors = SuccessorBuilder(tokenizer, (), sampling)  # type: ignore[arg-type]
    writer = TokenStreamer(0, sampling, tokenizer, ())  # type: ignore[arg-type]
    answer, events = Hypothesis(key=root_key(1)), list[object]()
    for chunk in chunks:
        nats = tuple(-float(t) for t in chunk)
        answer = successors.build(
            answer,
            0,
            tuple(chunk),
            nats,
            ended=False,
            alternatives=tuple(((t, n),) for t, n in zip(chunk, nats, strict=True)),
        )
        events += writer.commit([answer])
        if answer.finished:
            break
    if ended and not answer.finished:
        answer = successors.build(answer, 0, (), (-9.0,), ended=True, ending=EOS, alternatives=(((EOS, -9.0),),))
    return [*events, *writer.finish(answer, guided=False)]


@settings(max_examples=400)
@given(
    cut=ANY,
    stops=st.lists(st.text(st.sampled_from("ab é€"), min_size=1, max_size=3), max_size=2),
    ended=st.booleans(),
)
def test_a_stream_sends_with_each_text_the_tokens_that_it_is_made_of(
    cut: tuple[list[bytes], list[list[int]]], stops: list[str], ended: bool
) -> None:
    sampling = SamplingParams(stop=tuple(stops), logprobs=1)
    tokenizer = BytesTokenizer(cut[0])
    *committed, last = writings(tokenizer, cut[1], sampling, ended=ended)
    assert isinstance(last, ChoiceFinished)
    answer, text, tokens = last.hypothesis, "", list[TokenInfo]()
    for event in committed:
        assert isinstance(event, TextCommitted)
        assert event.text
        assert event.tokens, "text without its tokens"
        assert all(len(text) <= token.offset <= len(text) + len(event.text) for token in event.tokens)
        covered = tokenizer.decode([token.token for token in [*tokens, *event.tokens]])
        text, tokens = text + event.text, [*tokens, *event.tokens]
        assert covered.startswith(text), "text before its tokens"
    tokens += last.tokens
    assert text == answer.text
    assert [t.token for t in tokens] == [*answer.tokens, *([EOS] if answer.ended else [])]
    assert [t.logprob for t in tokens] == list(answer.logprobs)
    for token in tokens:
        [(other, piece, nats)] = token.alternatives
        assert (other, piece, nats) == (token.token, token.token_text, token.logprob)
        if token.token_text.text is not None and token.token_text.bytes is not None:
            assert text[token.offset :].startswith(token.token_text.text[: len(text) - token.offset])
    together = writings(tokenizer, [[t for chunk in cut[1] for t in chunk]], sampling, ended=ended)
    at_once = [t for event in together for t in event.tokens]  # type: ignore[attr-defined]
    assert at_once == tokens, "how it was cut into chunks must not show"


def test_beams_that_agree_on_a_text_but_not_on_its_tokens_send_nothing_yet() -> None:
    tokenizer = BytesTokenizer([b"a", b"b", b"ab", b"c"])
    writer = TokenStreamer(0, SamplingParams(), tokenizer, ())  # type: ignore[arg-type]
    successors, start = SuccessorBuilder(tokenizer, (), SamplingParams()), Hypothesis()  # type: ignore[arg-type]
    split = successors.build(start, 0, (0, 1, 3), (-1.0, -2.0, -3.0), ended=False)
    joined = successors.build(start, 0, (2, 3), (-4.0, -5.0), ended=False)
    assert split.text == joined.text
    assert writer.commit([split, joined]) == []
    *_, text, end = writer.commit([joined]) + writer.finish(joined, guided=True)
    assert text.text == "abc"
    assert [token.logprob for token in text.tokens] == [-4.0, -5.0]
    assert end.tokens == ()


# Tokenizers


def test_byte_level_pieces(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    tokenizer = HFTokenizer(str(tmp_path))
    tokens = tokenizer.encode("aé €\n", special_tokens=False)
    assert b"".join(tokenizer.token_text(t).bytes or b"" for t in tokens) == "aé €\n".encode()
    assert tokenizer.token_text(tokens[0]) == TokenText("a", b"a")
    assert tokenizer.token_text(tokens[1]) == TokenText(None, b"\xc3")
    assert tokenizer.token_text(257) == TokenText("<eos>", None)
    assert tokenizer.token_text(258) == TokenText("<extra0>", b"<extra0>"), "an added token that is not special"
    assert tokenizer.token_text(99_999) == TokenText("", b"")


def sentencepiece(folder: Path) -> HFTokenizer:
    """As Llama 2's: `▁` for a space, one put before the text, bytes for what it has no token for."""
    vocabulary = {"<unk>": 0, "</s>": 1, "▁a": 2, "▁": 3, "a": 4, "b": 5}
    vocabulary |= {f"<0x{byte:02X}>": 6 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["</s>"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    return HFTokenizer(str(folder))


def test_sentencepiece_tokens_are_placed_though_the_first_space_is_dropped(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path)
    euro = [6 + byte for byte in "€".encode()]
    tokens = (2, 5, 2, *euro, 5, 1)
    assert tokenizer.decode(tokens) == "ab a€b"
    found = prompt_token_infos(tokenizer, tokens, None)
    assert [token.offset for token in found] == [0, 1, 2, 4, 4, 4, 5, 6]
    assert [token.token_text.text for token in found] == ["a", "b", " a", None, None, None, "b", "</s>"]
    assert tokenizer.token_text(2) == TokenText(" a", b" a")
    assert tokenizer.token_text(euro[0]) == TokenText(None, b"\xe2")


def test_a_prompt_has_its_own_logprobs_but_for_the_first_token() -> None:
    tokens = tuple("é!".encode())
    found = PromptLogprobs((-1.0, -2.0), (3, 1), (((7, -0.5),), ((33, -2.0),)))
    placed = prompt_token_infos(ByteTokenizer(), tokens, found)  # type: ignore[arg-type]
    assert [(t.offset, t.logprob, t.rank) for t in placed] == [(0, None, None), (0, -1.0, 3), (1, -2.0, 1)]
    assert placed[1].alternatives == ((7, TokenText("\x07", b"\x07"), -0.5),)


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_have_a_place_whether_they_show_or_not(skip: bool) -> None:
    tokenizer, sampling = ByteTokenizer(), SamplingParams(skip_special_tokens=skip)
    successors, writer = SuccessorBuilder(tokenizer, (), sampling), TokenStreamer(0, sampling, tokenizer, ())  # type: ignore[arg-type]
    answer = successors.build(Hypothesis(), 0, (97, EOS, 98), (-1.0,) * 3, ended=False)
    events = writer.finish(answer, guided=False)
    assert [token.offset for event in events for token in event.tokens] == ([0, 1, 1] if skip else [0, 1, 6])
    assert answer.text == ("ab" if skip else "a<eos>b")


@pytest.mark.parametrize("skip", [True, False])
def test_an_eos_behind_half_a_character_has_the_offset_of_the_texts_end(skip: bool) -> None:
    tokenizer, sampling = ByteTokenizer(), SamplingParams(skip_special_tokens=skip)
    successors, writer = SuccessorBuilder(tokenizer, (), sampling), TokenStreamer(0, sampling, tokenizer, ())  # type: ignore[arg-type]
    tokens = (97, *"€".encode()[:2])
    answer = successors.build(Hypothesis(), 0, tokens, (-1.0,) * 4, ended=True, ending=EOS)
    events = writer.finish(answer, guided=False)
    assert answer.text == "a"
    assert [token.offset for event in events for token in event.tokens] == [0, 1, 1, 1]


def test_a_token_without_text_is_not_sent_before_it_is_sure_to_stay() -> None:
    """A stop string may begin right behind it, and then the answer ends before it."""
    tokenizer, sampling = ByteTokenizer(), SamplingParams(stop=("b",))
    successors, writer = SuccessorBuilder(tokenizer, (), sampling), TokenStreamer(0, sampling, tokenizer, ())  # type: ignore[arg-type]
    longer = successors.build(Hypothesis(), 0, (97, EOS), (-1.0,) * 2, ended=False)
    events = [*writer.commit([longer])]
    answer = successors.build(longer, 0, (98,), (-1.0,), ended=False)
    events += writer.finish(answer, guided=False)  # type: ignore[arg-type]
    assert (answer.text, answer.tokens) == ("a", (97,))
    assert [token.token for event in events for token in event.tokens] == [97]
