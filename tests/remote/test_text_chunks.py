"""Chunks of a provider that speaks text alone end on whole characters, and are as likely as the model makes them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes import answer
from tests.remote.fake_provider import FakeProvider
from tests.remote.test_large import ASK, CBS, remote_model, serving
from w2s_core.config import Limits
from w2s_core.errors import UpstreamError
from w2s_core.large.dialects import TextSession
from w2s_core.large.remote import RemoteLargeModel
from w2s_core.large.text_tokens import TextTokenDecoder
from w2s_core.remote.completion import Choice, Logprobs
from w2s_core.search.randomness import root_key
from w2s_core.telemetry.request_record import RequestRecord
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Hypothesis, SamplingParams, TextPrompt, Tokens

MAX_TOKENS = 7


def characters(tokenizer: HFTokenizer, shares: Mapping[str, float]) -> Any:
    """A distribution of characters, each of as many tokens as it has bytes; "" is EOS."""
    tokens = {c: tokenizer.encode(c, special_tokens=False) or (tokenizer.eos or 0,) for c in shares}

    def after(context: Tokens) -> Mapping[int, float]:
        for token in tokens.values():
            for size in range(1, len(token)):
                if context[-size:] == token[:size]:
                    return {token[size]: 1.0}
        return {tokens[c][0]: share for c, share in shares.items()}

    return after


class Enumerating(FakeProvider):
    """Choice i of a call is the i-th of all answers that the model could draw."""

    def drawable(self, prompt: Tokens, length: int) -> list[tuple[Tokens, float]]:
        """All of them, with their probabilities."""
        complete, growing = [], [((), 1.0)]
        for _ in range(length):
            longer = [
                ((*drawn, token), p * share)
                for drawn, p in growing
                for token, share in self.distribution(prompt + drawn).items()
            ]
            complete += [(drawn, p) for drawn, p in longer if drawn[-1] == self.tokenizer.eos]
            growing = [(drawn, p) for drawn, p in longer if drawn[-1] != self.tokenizer.eos]
        return complete + growing

    def draw(self, context: Tokens, *, seed: int, length: int, greedy: bool = False) -> tuple[Tokens, list[float]]:
        drawn, _ = self.drawable(context, length)[seed]
        return drawn, [-1.0] * len(drawn)

    async def post(self, path: str, body: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        return await super().post(path, {**body, "seed": 0}, **options)


async def law_of_search(provider: Enumerating, model: RemoteLargeModel, length: int) -> dict[tuple[str, bool], float]:
    """The probability of each answer (text, ended) that is drawn in chunks of `length` tokens, W = K = 1."""
    prompt = provider.tokenizer.encode("Say", special_tokens=True)
    hypotheses = {(): (Hypothesis(key=root_key(1)), 1.0)}
    finished: dict[tuple[str, bool], float] = defaultdict(float)
    async with model.open(model.encode(TextPrompt("Say")), SamplingParams(max_tokens=MAX_TOKENS), rows=1) as proposals:
        for begin in range(0, MAX_TOKENS, length):
            states: dict[Any, tuple[Hypothesis, float]] = {}
            for y, p in hypotheses.values():
                successors = await _all_successors(provider, proposals, prompt, y, min(length, MAX_TOKENS - begin))
                for z, q in successors:
                    if z.finished:
                        finished[z.text, True] += p * q
                    else:
                        states[z.tokens] = (z, states.get(z.tokens, (z, 0.0))[1] + p * q)
            hypotheses = states
    for y, p in hypotheses.values():
        finished[y.text, False] += p
    return finished


async def _all_successors(
    provider: Enumerating, proposals: Any, prompt: Tokens, y: Hypothesis, length: int
) -> Sequence[tuple[Hypothesis, float]]:
    calls = len(provider.calls)
    [only] = await proposals.propose([y], k=1, length=length)
    if len(provider.calls) == calls:  # there is no room for a token more
        return [(only, 1.0)]
    context = prompt + provider.tokenizer.encode(y.text, special_tokens=False)
    drawable = provider.drawable(context, provider.calls[-1]["max_tokens"])
    successors = await proposals.propose([y], k=len(drawable), length=length)
    return [(z, p) for z, (_, p) in zip(successors, drawable, strict=True)]


@pytest.mark.parametrize("length", range(1, MAX_TOKENS + 1))
@pytest.mark.parametrize("shares", [{"☃": 0.5, "a": 0.5}, {"𝄞": 0.3, "é": 0.3, "a": 0.2, "": 0.2}], ids=["two", "four"])
async def test_cutting_an_answer_into_chunks_does_not_change_its_law(
    tokenizer: HFTokenizer, shares: Mapping[str, float], length: int
) -> None:
    provider = Enumerating(tokenizer, characters(tokenizer, shares), flavor="openai")
    part = remote_model(provider, flavor="openai")
    await part.start()
    expected: dict[tuple[str, bool], float] = defaultdict(float)
    for drawn, p in provider.drawable(tokenizer.encode("Say", special_tokens=True), MAX_TOKENS):
        expected[tokenizer.decode(drawn).rstrip("\ufffd"), drawn[-1] == tokenizer.eos] += p
    found = await law_of_search(provider, part.model, length)  # type: ignore[attr-defined]
    assert found == pytest.approx(expected)
    await part.stop()


@pytest.mark.parametrize("model", ["plain", "guided"])
@pytest.mark.parametrize("length", [2, 5])
async def test_a_character_of_three_tokens_has_its_share(tokenizer: HFTokenizer, length: int, model: str) -> None:
    provider = FakeProvider(tokenizer, characters(tokenizer, {"☃": 0.5, "a": 0.5}), flavor="openai")
    guidance = replace(CBS, beam_width=1, successors=1, chunk_length=length) if model == "guided" else None
    sampling = SamplingParams(max_tokens=450, seed=3)
    async with serving(provider) as engine:
        choices = await answer(engine, replace(ASK, model=model, guidance=guidance, sampling=sampling))
    [y] = choices
    share, count = y.text.count("☃") / len(y.text), len(y.text)
    assert abs(share - 0.5) < 3 * math.sqrt(0.25 / count)


HALF = ["a", "bytes:\\xc3", *["bytes:\\xa9\\xc3"] * 4]  # each of the last holds an end and the next beginning


@pytest.mark.parametrize(
    ("ended", "room", "kept"),
    [(False, 99, (1, False)), (True, 99, (6, True)), (False, 6, (6, False)), (True, 4, (4, False))],
)
def test_where_no_character_ends_at_the_length_or_later(ended: bool, room: int, kept: tuple[int, bool]) -> None:
    """The chunk is shorter, unless the answer ends there."""
    logprobs = Logprobs(tokens=HALF, token_logprobs=[-1.0] * len(HALF))
    choice = Choice(text="aéééé\ufffd", finish_reason="stop" if ended else "length", logprobs=logprobs)
    drawn = TextSession(TextTokenDecoder(), "", SamplingParams()).parse(choice, 3, room)
    assert (len(drawn.tokens), drawn.ended) == kept


async def test_a_chunk_without_a_character_is_drawn_anew_and_longer(tokenizer: HFTokenizer) -> None:
    provider = FakeProvider(tokenizer, flavor="openai")

    def spoil(answer: dict[str, Any]) -> None:
        for choice in answer["choices"]:
            count = len(choice["logprobs"]["tokens"])
            choice |= {"text": "", "finish_reason": "length"}
            choice["logprobs"] = {"tokens": ["bytes:\\xe2"] * count, "token_logprobs": [-1.0] * count}

    async with serving(provider) as engine:
        provider.spoil = spoil
        with pytest.raises(UpstreamError, match="0 of 1 choices"):
            await answer(engine, replace(ASK, model="plain", sampling=SamplingParams(max_tokens=40)))
    assert [call["max_tokens"] for call in provider.calls] == [4 + 3, 4 + 6, 4 + 9]


@pytest.mark.parametrize("chunk_length", [None, 1, 2, 5, 70])
async def test_the_longest_answer_is_one_that_may_be_drawn(tokenizer: HFTokenizer, chunk_length: int | None) -> None:
    part = remote_model(FakeProvider(tokenizer, flavor="openai"), flavor="openai")
    await part.start()
    model: RemoteLargeModel = part.model  # type: ignore[attr-defined]
    previous = 0
    for drawn in range(1, 400):
        answer = room = model.longest_answer(drawn, chunk_length)
        cost = 0
        for size in [4, 8, 16, 32, *[64] * 99] if chunk_length is None else [chunk_length] * 999:
            cost += min(size + 3, room)
            room -= min(size, room)
        assert previous <= answer <= drawn
        assert cost <= drawn
        assert answer > 0
        previous = answer
    assert model.longest_answer(10**15, chunk_length) > 10**14, "at once"
    await part.stop()


@pytest.mark.parametrize("method", ["cbs", "best_of_n", "none"])
@pytest.mark.parametrize("bound", [40, 100, 177])
async def test_the_bound_on_drawn_tokens_includes_the_spare_ones(
    tokenizer: HFTokenizer, method: Any, bound: int
) -> None:
    for length in (1, 2, 5, 9):
        provider = FakeProvider(tokenizer, characters(tokenizer, {"☃": 0.3, "a": 0.7}), flavor="openai")
        guidance = replace(CBS, method=method, chunk_length=length, max_sampled_tokens=bound)
        request = replace(ASK, sampling=SamplingParams(max_tokens=100, seed=1))
        request = replace(request, model="plain") if method == "none" else replace(request, guidance=guidance)
        limits = Limits(max_sampled_tokens_per_request=bound)
        async with serving(provider, limits=limits) as engine:
            record = RequestRecord()
            events = [event async for event in engine.generate(request, record)]
        assert events
        assert record.sampled_tokens <= bound
        assert sum(call["n"] * call["max_tokens"] for call in provider.calls) <= bound
        assert method == "cbs" or record.sampled_tokens > bound / 2


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_no_call_asks_for_more_than_the_context_holds(tokenizer: HFTokenizer, model: str) -> None:
    provider = FakeProvider(tokenizer, characters(tokenizer, {"☃": 0.5, "a": 0.5}), flavor="openai")
    sampling = SamplingParams(max_tokens=None, seed=1)
    async with serving(provider) as engine:
        [y] = await answer(engine, replace(ASK, model=model, prompts=(TextPrompt("x" * 440),), sampling=sampling))
    assert y.length == 60
    assert all(len(call["prompt"].encode()) + call["max_tokens"] <= 500 for call in provider.calls)
