"""A remote pair over providers whose distributions are known: every way of asking gives the score from scratch."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from tests.remote.fake_provider import FakeProvider, words
from w2s_core.errors import ConfigurationError, ContextLengthError, RequestError, UpstreamError, UpstreamRefusedError
from w2s_core.remote.discovery import Discovery
from w2s_core.scorers.combined import CombinedScorer
from w2s_core.scorers.pair_model import PairModel
from w2s_core.scorers.remote import RemotePairModel, RemoteScorer, ask_pair
from w2s_core.text import TextCodec
from w2s_core.types import ChatPrompt, Hypothesis, Prompt, TextPrompt, Tokens

CHARACTERS = tuple("abcdsSay <>urtinHQ:\né☃")
PROMPT = TextPrompt("Say")
WAYS: Mapping[str, frozenset[str]] = {  # the fields that a provider refuses
    "prompt_logprobs": frozenset(),
    "echo": frozenset({"prompt_logprobs"}),
    "echo and one token": frozenset({"prompt_logprobs", "max_tokens 0"}),
}


class Picky(FakeProvider):
    """Refuses some fields."""

    refused: frozenset[str] = frozenset()

    async def post(self, path: str, body: Mapping[str, Any], *, affinity: int | None = None) -> dict[str, Any]:
        fields = {*body, f"max_tokens {body['max_tokens']}"}
        if fields & self.refused:
            raise UpstreamRefusedError(f"no {fields & self.refused}")
        return await super().post(path, body, affinity=affinity)


def pair_of(codec: TextCodec, way: str = "prompt_logprobs", *, lists_context: bool = True) -> list[Picky]:
    """Tuned and untuned: equal but for EOS, and for the order in which they like the characters."""
    models = []
    for eos, characters in ((0.2, CHARACTERS), (0.05, CHARACTERS[::-1])):
        model = Picky(codec, words(codec, characters, eos), lists_context=lists_context)
        model.refused = WAYS[way]
        models.append(model)
    return models


async def scorer_on(models: list[Picky], template: str | None = None, *, tokenizer: bool = True) -> RemoteScorer:
    parts = []
    for model in models:
        codec = model.codec if tokenizer else None
        discovery: Discovery[Any] = Discovery(model, partial(ask_pair, model, model.config, codec, "pairs.x.tuned"))  # type: ignore[arg-type]
        await discovery.start()
        model.calls.clear()
        reader = None if codec is None else PairModel(model.name, codec, shares_tokens=False)
        parts.append(RemotePairModel(model, reader, discovery))  # type: ignore[arg-type]
    return RemoteScorer(*parts, template)


def answers(*texts: str) -> list[Hypothesis]:
    """Half an answer, and the same one ended, of each text."""
    return [
        Hypothesis(text=text, ended=ended, finish_reason="stop" if ended else None)
        for text in texts
        for ended in (False, True)
    ]


def expected(models: list[Picky], prompt: Tokens, y: Hypothesis, *, eos: bool = True) -> float:
    codec = models[0].codec
    assert codec.eos is not None
    tokens = codec.encode(y.text, special_tokens=False) + ((codec.eos,) if y.ended and eos else ())
    tuned, untuned = (sum(v or 0.0 for v in m.logprobs_of(prompt + tokens)[len(prompt) :]) for m in models)
    return tuned - untuned


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("prompt", "template", "seen"),
    [
        (PROMPT, None, "Say"),
        (PROMPT, "Q: {prompt}", "Q: Say"),
        (ChatPrompt(({"role": "user", "content": "Hi"},)), None, "<user>Hi\n<assistant>"),
        (ChatPrompt(({"role": "user", "content": "Hi"},)), "Q: {prompt}", "Q: Hi"),
        (PROMPT, "", ""),
    ],
)
async def test_a_score_is_that_of_the_whole_answer(
    codec: TextCodec, way: str, prompt: Prompt, template: str | None, seen: str
) -> None:
    models = pair_of(codec, way)
    scorer = await scorer_on(models, template)
    candidates = answers("", "a", "ab ☃", "bééd a")
    async with scorer.open(prompt) as scoring:
        scores = await scoring.score(candidates)
    context = codec.encode(seen, special_tokens=True) or codec.start
    assert [s.total for s in scores] == pytest.approx([expected(models, context, y) for y in candidates], abs=1e-9)
    assert len({round(s.total, 6) for s in scores}) > 4
    assert scoring.bought.calls == len(models[0].calls) + len(models[1].calls) == 2 * 7  # nothing to read, no call
    assert scoring.scored_tokens == scoring.bought.prompt_tokens


@pytest.mark.parametrize("way", ["echo", "echo and one token"])
@pytest.mark.parametrize("prompt", ["Say ", "é☃", "a" * 40])
async def test_without_a_tokenizer_text_is_scored(codec: TextCodec, way: str, prompt: str) -> None:
    models = pair_of(codec, way)
    scorer = await scorer_on(models, tokenizer=False)
    candidates = answers("a", "ab ☃", "☃")
    async with scorer.open(TextPrompt(prompt)) as scoring:
        scores = await scoring.score(candidates)
    context = codec.encode(prompt, special_tokens=True)
    assert [s.total for s in scores] == pytest.approx(
        [expected(models, context, y, eos=False) for y in candidates], abs=1e-9
    )


async def test_a_token_across_the_border_counts_for_neither(merging: TextCodec) -> None:
    """`a` + `b` is one token of the provider's; it begins in the prompt, so of the answer only `é` is left."""
    models = pair_of(merging, "echo")
    models[0].distribution = lambda _: dict.fromkeys(range(300), 0.5)
    models[1].distribution = lambda _: dict.fromkeys(range(300), 0.25)
    scorer = await scorer_on(models, tokenizer=False)
    async with scorer.open(TextPrompt("Sa")) as scoring:
        [score] = await scoring.score([Hypothesis(text="bé")])
    assert len(merging.encode("Sabé", special_tokens=True)) == len("S") + len("ab") - 1 + len("é".encode())
    assert score.total == pytest.approx(2 * math.log(2))  # the two bytes of é


def test_the_text_is_scored_if_a_stop_string_cut_a_shared_token_in_two(merging: TextCodec) -> None:
    """Otherwise the large model's tokens serve as they are, if the vocabulary is the same."""
    assert merging.eos is not None
    ab, a = (merging.encode(text, special_tokens=False) for text in ("ab", "a"))
    assert len(ab) == 1
    other = (*a, *merging.encode("b", special_tokens=False))  # not how the tokenizer writes it
    grows, ends = Hypothesis(other, "ab"), Hypothesis(other, "ab", ended=True, finish_reason="stop")
    cut = Hypothesis(ab, "a", finish_reason="stop")
    texts = merging.encode_many([y.text for y in (grows, ends, cut)])
    shared = PairModel("m", merging, shares_tokens=True)
    assert shared.answers([grows, ends, cut], texts) == [other, (*other, merging.eos), a]
    foreign = PairModel("m", merging, shares_tokens=False)
    assert foreign.answers([grows, ends, cut], texts) == [ab, (*ab, merging.eos), a]


async def test_without_a_tokenizer_a_conversation_needs_a_template(codec: TextCodec) -> None:
    chat = ChatPrompt(({"role": "user", "content": "Hi"},))
    scorer = await scorer_on(pair_of(codec, "echo"), tokenizer=False)
    with pytest.raises(RequestError, match="tokenizer") as refusal:
        scorer.check(chat, 5)
    assert refusal.value.param == "messages"
    assert (await scorer_on(pair_of(codec, "echo"), "Q: {prompt}", tokenizer=False)).check(chat, 5) == 5
    with pytest.raises(ConfigurationError, match="prompt_template"):
        await scorer_on(pair_of(codec, "echo"), "", tokenizer=False)


async def test_a_provider_that_tells_nothing_is_refused(codec: TextCodec) -> None:
    models = pair_of(codec)
    models[0].refused = frozenset({"prompt_logprobs", "echo"})
    with pytest.raises(ConfigurationError, match=r"pairs\.x\.tuned: the provider tells no log-probabilities"):
        await scorer_on(models)


async def test_the_context_bounds_prompt_and_answer(codec: TextCodec) -> None:
    scorer = await scorer_on(pair_of(codec))
    with pytest.raises(ContextLengthError):
        scorer.check(TextPrompt("a" * 500), 5)
    async with scorer.open(TextPrompt("a" * 490)) as scoring:
        with pytest.raises(RequestError, match="outgrown") as refusal:
            await scoring.score([Hypothesis(text="a" * 20)])
    assert refusal.value.param == "max_tokens"
    unbounded = await scorer_on(pair_of(codec, lists_context=False))
    assert unbounded.check(TextPrompt("a" * 500), 5) == 5


async def test_both_models_read_all_candidates_at_once(codec: TextCodec) -> None:
    models = pair_of(codec)
    scorer = await scorer_on(models)
    together = asyncio.Event()

    async def gate() -> None:
        if sum(model.open_calls for model in models) == 2 * 4:
            together.set()
        await together.wait()

    for model in models:
        model.gate = gate
    async with asyncio.timeout(10), scorer.open(PROMPT) as scoring:
        await scoring.score(answers("a", "ab"))
    assert together.is_set()


@pytest.mark.parametrize("cut", [slice(1, None), slice(0, 0), slice(0, -1)])
async def test_too_few_log_probabilities_are_an_error(codec: TextCodec, cut: slice) -> None:
    models = pair_of(codec)
    scorer = await scorer_on(models)

    def spoil(answer: dict[str, Any]) -> None:
        answer["choices"][0]["prompt_logprobs"] = answer["choices"][0]["prompt_logprobs"][cut]

    models[1].spoil = spoil
    async with scorer.open(PROMPT) as scoring:
        with pytest.raises(UpstreamError, match="log-probabilities"):
            await scoring.score([Hypothesis(text="ab")])


async def test_remote_pairs_add_up(codec: TextCodec) -> None:
    one, other = pair_of(codec), pair_of(codec, "echo")
    scorers = {"one": await scorer_on(one), "other": await scorer_on(other)}
    combined = CombinedScorer(scorers, {"one": 1.0, "other": -1.0})
    async with combined.open(PROMPT) as scoring:
        [score] = await scoring.score([replace(Hypothesis(), text="ab")])
        assert scoring.bought.calls == 4
    assert score.total == pytest.approx(0.0)
    assert score.pairs["one"] != 0


async def test_what_is_expected_is_asked_for_meanwhile_and_once(codec: TextCodec) -> None:
    models = pair_of(codec)
    scorer = await scorer_on(models)
    go = asyncio.Event()
    for model in models:
        model.gate = go.wait
    first, more = answers("a"), answers("b", "c")
    async with scorer.open(PROMPT) as scoring, asyncio.timeout(10):
        await scoring.expect(first)  # returns although nobody answers
        await asyncio.sleep(0)
        assert [model.open_calls for model in models] == [2, 2]
        scores = asyncio.create_task(scoring.score([*first, *more]))
        go.set()
        found = await scores
        assert [len(model.calls) for model in models] == [6, 6]
    whole = [expected(models, codec.encode("Say", special_tokens=True), y) for y in [*first, *more]]
    assert [score.total for score in found] == pytest.approx(whole)


async def test_who_leaves_ends_what_is_expected(codec: TextCodec) -> None:
    models = pair_of(codec)
    scorer = await scorer_on(models)
    for model in models:
        model.gate = asyncio.Event().wait
    before = asyncio.all_tasks()
    async with scorer.open(PROMPT) as scoring, asyncio.timeout(10):
        await scoring.expect(answers("a"))
        await asyncio.sleep(0)
        assert [model.open_calls for model in models] == [2, 2]
    assert [model.open_calls for model in models] == [0, 0]
    assert asyncio.all_tasks() == before
