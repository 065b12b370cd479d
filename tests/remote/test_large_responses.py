"""A remote large model's responses: ends, stop strings, missing and spoilt choices, and the bytes of text tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import answer
from tests.remote.fake_provider import FakeProvider, words
from tests.remote.test_large import ASK, CBS, FLAVORS, serving
from w2s_core.errors import UpstreamError
from w2s_core.large.dialects import DrawnChoice, TextSession, TokenIdSession
from w2s_core.large.text_tokens import TextTokenDecoder, token_bytes_of_choice, whole_character_tokens
from w2s_core.remote.completion import Choice, Logprobs
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Guidance, SamplingParams


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_stop_strings_are_found_here(tokenizer: HFTokenizer, flavor: str, model: str) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, ("a", "b"), eos=0.0), flavor=flavor)
    sampling = SamplingParams(max_tokens=60, seed=3, stop=("aaa", "abb"))
    async with serving(provider) as engine:
        [y] = await answer(engine, replace(ASK, model=model, sampling=sampling))
    assert y.finish_reason == "stop"
    assert not y.ended
    assert not {"aaa", "abb"} & {y.text[i : i + 3] for i in range(len(y.text))}
    assert all("stop" not in call for call in provider.calls)


async def test_an_empty_chunk_that_stops_is_a_finished_answer(tokenizer: HFTokenizer) -> None:
    assert tokenizer.eos is not None
    for flavor in FLAVORS:
        provider = FakeProvider(tokenizer, lambda _: {tokenizer.eos: 1.0}, flavor=flavor)  # type: ignore[dict-item]
        async with serving(provider) as engine:
            [y] = await answer(engine, ASK)
        assert (y.text, y.ended, y.tokens, y.length) == ("", True, (), 1)


async def test_a_stop_string_of_the_providers_own_is_no_end_of_the_model(tokenizer: HFTokenizer) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, ("a",), eos=0.0))
    provider.spoil = lambda answer: [c.update(finish_reason="stop", stop_reason="aa") for c in answer["choices"]]
    async with serving(provider) as engine:
        [y] = await answer(engine, ASK)
    assert (y.ended, y.finish_reason) == (False, "length")


@pytest.mark.parametrize("flavor", FLAVORS)
async def test_missing_choices_are_asked_for_again(tokenizer: HFTokenizer, flavor: str) -> None:
    provider = FakeProvider(tokenizer, flavor=flavor)
    async with serving(provider) as engine:
        provider.fewer = 2
        await answer(engine, replace(ASK, guidance=replace(CBS, beam_width=1)))
        assert [call["n"] for call in provider.calls[:2]] == [3, 2]
        assert provider.calls[0]["seed"] != provider.calls[1]["seed"]
        provider.spoil = lambda answer: answer["choices"].__delitem__(slice(1, None))
        with pytest.raises(UpstreamError, match="3 of 5 choices"):
            await answer(engine, replace(ASK, guidance=replace(CBS, beam_width=1, successors=5)))


@pytest.mark.parametrize("flavor", FLAVORS)
async def test_choices_are_sorted_by_index(tokenizer: HFTokenizer, flavor: str) -> None:
    provider = FakeProvider(tokenizer, flavor=flavor)
    async with serving(provider) as engine:
        expected = await answer(engine, replace(ASK, n=2))
        provider.spoil = lambda answer: answer["choices"].reverse()
        assert await answer(engine, replace(ASK, n=2)) == expected


async def test_the_logprob_of_an_eos_returned_as_empty_text_is_kept(tokenizer: HFTokenizer) -> None:
    """Some providers list the EOS among the tokens, with an empty text. Ranking by likelihood must count it."""
    provider = FakeProvider(tokenizer, words(tokenizer, ("a", "b"), eos=0.3), flavor="openai")

    def spoil(answer: dict[str, Any]) -> None:
        for choice in answer["choices"]:
            if choice["finish_reason"] == "stop":
                choice["logprobs"]["tokens"].append("")
                choice["logprobs"]["token_logprobs"].append(-1.5)

    provider.spoil = spoil
    async with serving(provider) as engine:
        found = await answer(engine, replace(ASK, guidance=Guidance("best_of_n", {"likes-a": 1.0}, successors=4), n=4))
    assert any(y.ended for y in found)
    for y in found:
        assert len(y.logprobs) == y.length
        assert not y.ended or y.logprobs[-1] == -1.5


def test_an_eos_behind_more_tokens_than_asked_for_is_dropped(tokenizer: HFTokenizer) -> None:
    assert tokenizer.eos is not None
    sampling = SamplingParams(logprobs=1)
    logprobs = Logprobs(token_logprobs=[-1.0, -2.0, -3.0], top_logprobs=[{"token_id:7": -1.0}] * 3)
    choice = Choice(finish_reason="stop", token_ids=[64, 65, tokenizer.eos], logprobs=logprobs)
    session = TokenIdSession("far", tokenizer, (1,), sampling)
    assert session.parse(choice, 2, room=9) == DrawnChoice(
        (64, 65), (-1.0, -2.0, -3.0), ended=True, ending=tokenizer.eos, alternatives=(((7, -1.0),),) * 3
    )
    assert session.parse(choice, 1, room=9) == DrawnChoice((64,), (-1.0,), ended=False, alternatives=(((7, -1.0),),))


def _replace(value: Any, *path: Any) -> Any:
    """A function that puts `value` at this place of an answer's first choice."""

    def spoil(answer: dict[str, Any]) -> None:
        *holders, key = path
        holder = answer["choices"][0]
        for name in holders:
            holder = holder[name]
        holder[key] = value

    return spoil


SPOILT: Sequence[tuple[Any, str]] = [
    (lambda answer: answer.pop("choices"), "choices"),
    (lambda answer: answer.update(choices=[]), "choices"),
    (lambda answer: answer["choices"][0].update(text=7), "choices.0.text"),
    (lambda answer: answer["choices"][0].update(token_ids="abc"), "token_ids"),
    (lambda answer: answer["choices"][0].pop("token_ids"), "token_ids"),
    (lambda answer: answer["choices"][0].update(logprobs=None), "logprobs"),
    (lambda answer: answer["choices"][0]["logprobs"]["token_logprobs"].pop(), "logprobs"),
    *((_replace(value, "token_ids", 0), "does not have") for value in (-1, 300, 2**64)),
    *((_replace(value, "token_ids", 0), r"choices\.0\.token_ids\.0`") for value in ("1", True, 1.0, None)),
    *((_replace(value, "logprobs", "token_logprobs", 0), r"token_logprobs\.0`") for value in (0.5, "x", 10**400)),
    *((_replace(value, "logprobs", "token_logprobs", 0), "logprobs") for value in (None,)),
    (_replace({"\ud83d": 1.0}, "logprobs", "top_logprobs"), r"top_logprobs` is invalid"),
    (_replace([{"no such field": []}], "logprobs", "top_logprobs"), r"top_logprobs\.0` is invalid"),
    *((lambda answer, n=n: answer["usage"].update(completion_tokens=n), "usage") for n in (-5, 10**12, "1")),
]


@pytest.mark.parametrize(("spoil", "said"), SPOILT)
async def test_an_answer_that_makes_no_sense_is_one_clear_error(tokenizer: HFTokenizer, spoil: Any, said: str) -> None:
    provider = FakeProvider(tokenizer)
    async with serving(provider) as engine:
        provider.spoil = spoil
        with pytest.raises(UpstreamError, match=said):
            await answer(engine, ASK)


async def test_alternatives_of_too_few_tokens_are_an_error(tokenizer: HFTokenizer) -> None:
    """They would be told of other tokens."""
    provider = FakeProvider(tokenizer)
    provider.spoil = _replace([{"token_id:1": -1.0}], "logprobs", "top_logprobs")
    async with serving(provider) as engine:
        with pytest.raises(UpstreamError, match="top_logprobs"):
            await answer(engine, replace(ASK, sampling=SamplingParams(max_tokens=12, seed=1, logprobs=1)))


@pytest.mark.parametrize("text", ["a\ud83d", "\ude00☃"])
def test_half_a_surrogate_pair_is_no_character(text: str) -> None:
    """JSON can say it, UTF-8 cannot."""
    expected = text.encode("utf-8", "replace")
    assert b"".join(token_bytes_of_choice(["x", "y", "z"], text)) == expected
    assert b"".join(token_bytes_of_choice(list(text), text)) == expected


def test_text_without_tokens_is_an_error() -> None:
    session = TextSession(TextTokenDecoder(), "", SamplingParams())
    with pytest.raises(UpstreamError, match="logprobs"):
        session.parse(Choice(text="abc", finish_reason="stop", logprobs=Logprobs()), 5, 5)


@given(st.text("aé☃𝄞 ", max_size=8), st.integers(1, 10))
def test_whole_characters_never_cut_one(text: str, length: int) -> None:
    pieces = [bytes([byte]) for byte in text.encode()]
    kept = whole_character_tokens(pieces, length)
    kept_text = b"".join(pieces[:kept]).decode()
    assert text.startswith(kept_text)
    if kept < length:  # only where there is no more
        assert kept == len(pieces)
    else:
        assert len(kept_text[:-1].encode()) < length, "the fewest"


@pytest.mark.parametrize(("length", "kept"), [(1, 1), (2, 4), (3, 4), (4, 4), (5, 4), (6, 4)])
def test_half_a_character_may_be_written_as_nothing(length: int, kept: int) -> None:
    """As vLLM does: two tokens without text before the one that completes their character."""
    pieces = [b"a", b"", b"", "☃".encode(), b"", b""]
    assert whole_character_tokens(pieces, length) == kept
    assert whole_character_tokens(pieces[4:], length) == 0


@given(st.text("aé☃ ", max_size=8), st.lists(st.sampled_from(["", "\ufffd", "x"]), max_size=5))
def test_pieces_join_to_the_text_whatever_the_tokens_say(text: str, names: list[str]) -> None:
    pieces = token_bytes_of_choice(names, text)
    assert len(pieces) == len(names)
    if names:
        assert b"".join(pieces).decode().rstrip("\ufffd") == text
