"""A remote pair on providers with known distributions: every log-probability method gives the exact score."""

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
from w2s_core.remote.capability_probe import CapabilityProbe
from w2s_core.scorers.combined import CombinedScorer
from w2s_core.scorers.pair_model import PairModel
from w2s_core.scorers.remote import RemotePairModel, RemoteScorer, probe_pair_model
from w2s_core.text.tokenizer import HFTokenizer
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

    async def post(self, path: str, body: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        fields = {*body, f"max_tokens {body['max_tokens']}"}
        if fields & self.refused:
            raise UpstreamRefusedError(f"no {fields & self.refused}")
        return await super().post(path, body, **options)


def pair_of(tokenizer: HFTokenizer, way: str = "prompt_logprobs", *, lists_context: bool = True) -> list[Picky]:
    """Tuned and untuned: equal but for EOS, and for the order in which they like the characters."""
    models = []
    for eos, characters in ((0.2, CHARACTERS), (0.05, CHARACTERS[::-1])):
        model = Picky(tokenizer, words(tokenizer, characters, eos), lists_context=lists_context)
        model.refused = WAYS[way]
        models.append(model)
    return models


async def scorer_on(models: list[Picky], template: str | None = None, *, with_tokenizer: bool = True) -> RemoteScorer:
    parts = []
    for model in models:
        tokenizer = model.tokenizer if with_tokenizer else None
        probe: CapabilityProbe[Any] = CapabilityProbe(
            model, partial(probe_pair_model, model, model.config, tokenizer, "pairs.x.tuned")
        )  # type: ignore[arg-type]
        await probe.start()
        model.calls.clear()
        reader = None if tokenizer is None else PairModel(model.name, tokenizer, shares_tokens=False)
        parts.append(RemotePairModel(model, reader, probe))  # type: ignore[arg-type]
    return RemoteScorer(parts[0], parts[1] if len(parts) > 1 else None, template)


def answers(*texts: str) -> list[Hypothesis]:
    """Half an answer, and the same one ended, of each text."""
    return [
        Hypothesis(text=text, ended=ended, finish_reason="stop" if ended else None)
        for text in texts
        for ended in (False, True)
    ]


def expected(models: list[Picky], prompt: Tokens, y: Hypothesis, *, eos: bool = True) -> float:
    tokenizer = models[0].tokenizer
    assert tokenizer.eos is not None
    tokens = tokenizer.encode(y.text, special_tokens=False) + ((tokenizer.eos,) if y.ended and eos else ())
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
    tokenizer: HFTokenizer, way: str, prompt: Prompt, template: str | None, seen: str
) -> None:
    models = pair_of(tokenizer, way)
    scorer = await scorer_on(models, template)
    candidates = answers("", "a", "ab ☃", "bééd a")
    async with scorer.open(prompt) as scoring:
        scores = await scoring.score(candidates)
    context = tokenizer.encode(seen, special_tokens=True) or tokenizer.empty_prompt
    assert [s.total for s in scores] == pytest.approx([expected(models, context, y) for y in candidates], abs=1e-9)
    assert len({round(s.total, 6) for s in scores}) > 4
    assert (
        scoring.provider_usage.calls == len(models[0].calls) + len(models[1].calls) == 2 * 7
    )  # nothing to read, no call
    assert scoring.scored_tokens == scoring.provider_usage.prompt_tokens


@pytest.mark.parametrize("with_tokenizer", [True, False])
async def test_without_an_untuned_model_a_score_is_a_log_probability(
    tokenizer: HFTokenizer, with_tokenizer: bool
) -> None:
    [tuned, _] = pair_of(tokenizer, "echo")
    scorer = await scorer_on([tuned], with_tokenizer=with_tokenizer)
    [y, ended] = answers("ab ☃")
    async with scorer.open(PROMPT) as scoring:
        scores = await scoring.score([y, ended])
    context = tokenizer.encode("Say", special_tokens=True)
    tokens = tokenizer.encode("ab ☃", special_tokens=False)
    logprobs = tuned.logprobs_of(context + tokens)[len(context) :]
    assert scores[0].total == pytest.approx(sum(v or 0.0 for v in logprobs), abs=1e-9)
    assert (scores[1].total < scores[0].total) == with_tokenizer, "the end is scored where it has a token"
    assert scoring.provider_usage.calls == len(tuned.calls)


@pytest.mark.parametrize("way", ["echo", "echo and one token"])
@pytest.mark.parametrize("prompt", ["Say ", "é☃", "a" * 40])
async def test_without_a_tokenizer_text_is_scored(tokenizer: HFTokenizer, way: str, prompt: str) -> None:
    models = pair_of(tokenizer, way)
    scorer = await scorer_on(models, with_tokenizer=False)
    candidates = answers("a", "ab ☃", "☃")
    async with scorer.open(TextPrompt(prompt)) as scoring:
        scores = await scoring.score(candidates)
    context = tokenizer.encode(prompt, special_tokens=True)
    assert [s.total for s in scores] == pytest.approx(
        [expected(models, context, y, eos=False) for y in candidates], abs=1e-9
    )


async def test_a_token_across_the_border_counts_for_neither(merging: HFTokenizer) -> None:
    """`a` + `b` is one token of the provider's; it begins in the prompt, so of the answer only `é` is left."""
    models = pair_of(merging, "echo")
    models[0].distribution = lambda _: dict.fromkeys(range(300), 0.5)
    models[1].distribution = lambda _: dict.fromkeys(range(300), 0.25)
    scorer = await scorer_on(models, with_tokenizer=False)
    async with scorer.open(TextPrompt("Sa")) as scoring:
        [score] = await scoring.score([Hypothesis(text="bé")])
    assert len(merging.encode("Sabé", special_tokens=True)) == len("S") + len("ab") - 1 + len("é".encode())
    assert score.total == pytest.approx(2 * math.log(2))  # the two bytes of é


def test_the_text_is_scored_if_a_stop_string_cut_a_shared_token_in_two(merging: HFTokenizer) -> None:
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


async def test_without_a_tokenizer_a_conversation_needs_a_template(tokenizer: HFTokenizer) -> None:
    chat = ChatPrompt(({"role": "user", "content": "Hi"},))
    scorer = await scorer_on(pair_of(tokenizer, "echo"), with_tokenizer=False)
    with pytest.raises(RequestError, match="tokenizer") as refusal:
        scorer.check(chat, 5)
    assert refusal.value.param == "messages"
    assert (await scorer_on(pair_of(tokenizer, "echo"), "Q: {prompt}", with_tokenizer=False)).check(chat, 5) == 5
    with pytest.raises(ConfigurationError, match="prompt_template"):
        await scorer_on(pair_of(tokenizer, "echo"), "", with_tokenizer=False)


async def test_a_provider_that_tells_nothing_is_refused(tokenizer: HFTokenizer) -> None:
    models = pair_of(tokenizer)
    models[0].refused = frozenset({"prompt_logprobs", "echo"})
    with pytest.raises(ConfigurationError, match=r"pairs\.x\.tuned: the provider returns no log-probabilities"):
        await scorer_on(models)


async def test_the_context_bounds_prompt_and_answer(tokenizer: HFTokenizer) -> None:
    scorer = await scorer_on(pair_of(tokenizer))
    with pytest.raises(ContextLengthError):
        scorer.check(TextPrompt("a" * 500), 5)
    async with scorer.open(TextPrompt("a" * 490)) as scoring:
        with pytest.raises(RequestError, match="outgrown") as refusal:
            await scoring.score([Hypothesis(text="a" * 20)])
    assert refusal.value.param == "max_tokens"
    unbounded = await scorer_on(pair_of(tokenizer, lists_context=False))
    assert unbounded.check(TextPrompt("a" * 500), 5) == 5


async def test_both_models_read_all_candidates_at_once(tokenizer: HFTokenizer) -> None:
    models = pair_of(tokenizer)
    scorer = await scorer_on(models)
    together = asyncio.Event()

    async def gate() -> None:
        if sum(model.open_calls for model in models) == 2 * 4:
            together.set()
        await together.wait()

    for model in models:
        model.gate = gate
    async with asyncio.timeout(60), scorer.open(PROMPT) as scoring:
        await scoring.score(answers("a", "ab"))
    assert together.is_set()


@pytest.mark.parametrize("cut", [slice(1, None), slice(0, 0), slice(0, -1)])
async def test_too_few_log_probabilities_are_an_error(tokenizer: HFTokenizer, cut: slice) -> None:
    models = pair_of(tokenizer)
    scorer = await scorer_on(models)

    def spoil(answer: dict[str, Any]) -> None:
        answer["choices"][0]["prompt_logprobs"] = answer["choices"][0]["prompt_logprobs"][cut]

    models[1].spoil = spoil
    async with scorer.open(PROMPT) as scoring:
        with pytest.raises(UpstreamError, match="log-probabilities"):
            await scoring.score([Hypothesis(text="ab")])


@pytest.mark.parametrize("value", [None, 0.5])
async def test_an_answers_token_without_a_log_probability_is_an_error(tokenizer: HFTokenizer, value: Any) -> None:
    """Only the first token of all has none, because nothing stands before it."""
    models = pair_of(tokenizer, "echo")
    scorer = await scorer_on(models)
    models[1].spoil = lambda answer: answer["choices"][0]["logprobs"]["token_logprobs"].__setitem__(-1, value)
    async with scorer.open(PROMPT) as scoring:
        with pytest.raises(UpstreamError, match=r"log-probabilities|token_logprobs"):
            await scoring.score([Hypothesis(text="ab")])


async def test_remote_pairs_add_up(tokenizer: HFTokenizer) -> None:
    one, other = pair_of(tokenizer), pair_of(tokenizer, "echo")
    scorers = {"one": await scorer_on(one), "other": await scorer_on(other)}
    combined = CombinedScorer(scorers, {"one": 1.0, "other": -1.0})
    async with combined.open(PROMPT) as scoring:
        [score] = await scoring.score([replace(Hypothesis(), text="ab")])
        assert scoring.provider_usage.calls == 4
    assert score.total == pytest.approx(0.0)
    assert score.pairs["one"] != 0
