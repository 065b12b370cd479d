"""A remote large model on a provider with a known distribution: what is sent, and what is made of the responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import FakeScorer, answer
from tests.remote.fake_provider import FakeProvider, words
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import RequestFinished, TextCommitted
from w2s_core.errors import ConfigurationError, ContextLengthError, RequestError, UnavailableError, UpstreamError
from w2s_core.large.capabilities import probe_large_model
from w2s_core.large.dialects import DrawnChoice, TokenIdSession
from w2s_core.large.remote import RemoteLargeModel
from w2s_core.large.text_tokens import token_bytes_of_choice, whole_character_tokens
from w2s_core.remote.capability_probe import CapabilityProbe
from w2s_core.remote.completion import Choice, Logprobs
from w2s_core.search.randomness import call_seed, copy_key, root_key, successor_key
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import ChatPrompt, GenerationRequest, Guidance, SamplingParams, TextPrompt, TokenPrompt, Tokens

KEY = "large_models.far"
FLAVORS = ("vllm", "openai")
CBS = Guidance("cbs", {"likes-a": 1.0}, beam_width=2, successors=3, chunk_length=4)
ASK = GenerationRequest("guided", (TextPrompt("Say"),), SamplingParams(max_tokens=12, seed=1))


def remote_model(provider: FakeProvider, *, with_tokenizer: bool = True, **config: Any) -> CapabilityProbe[Any]:
    """`.model` is the large model on it."""
    tokenizer = provider.tokenizer if with_tokenizer else None
    settings = replace(provider.config, **config)
    probe: CapabilityProbe[Any] = CapabilityProbe(
        provider, partial(probe_large_model, provider, settings, tokenizer, KEY)
    )  # type: ignore[arg-type]
    probe.model = RemoteLargeModel(provider, tokenizer, probe)  # type: ignore[attr-defined, arg-type]
    return probe


@asynccontextmanager
async def serving(provider: FakeProvider, **config: Any) -> AsyncIterator[Engine]:
    part = remote_model(provider, **config)
    scorers = {"likes-a": FakeScorer()}
    served = {"plain": ("far", None), "guided": ("far", CBS)}
    async with Engine({"far": part.model}, scorers, served, components=[part]) as engine:  # type: ignore[attr-defined]
        provider.calls.clear()
        yield engine


def searched(
    provider: FakeProvider, prompt: Tokens, seed: int, guidance: Guidance, budget: int
) -> list[tuple[Any, ...]]:
    """The search, written anew: no engine, no wires; hypotheses are (tokens, ended, key), best first."""
    decode = provider.tokenizer.decode
    score = FakeScorer().nats
    beam = [((), False, copy_key(root_key(seed), i)) for i in range(guidance.beam_width)]
    while budget > 0 and not all(ended for _, ended, _ in beam):
        pool = [y for y in beam if y[1]]
        new: list[tuple[Any, ...]] = []
        for tokens, ended, key in beam:
            if ended:
                continue
            for i in range(guidance.successors):
                drawn, _ = provider.draw(
                    prompt + tokens,
                    seed=call_seed(key, len(tokens)) + i,
                    length=min(guidance.chunk_length, budget),
                )
                ends = drawn[-1:] == (provider.tokenizer.eos,)
                y = (tokens + (drawn[:-1] if ends else drawn), ends, successor_key(key, len(tokens), i))
                if y[:2] not in [other[:2] for other in new]:
                    new.append(y)
        beam = sorted(pool + new, key=lambda y: -score(decode(y[0]), y[1]))[: guidance.beam_width]
        budget -= guidance.chunk_length
    return beam


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**62),
    w=st.integers(1, 3),
    k=st.integers(1, 4),
    length=st.integers(1, 7),
    flavor=st.sampled_from(FLAVORS),
)
def test_the_search_over_a_provider_is_the_search(
    tokenizer: HFTokenizer, seed: int, w: int, k: int, length: int, flavor: str
) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, ("a", "b", " ")), flavor=flavor)
    guidance = replace(CBS, beam_width=w, successors=k, chunk_length=length)
    request = replace(ASK, guidance=guidance, sampling=SamplingParams(max_tokens=12, seed=seed), n=w)

    async def run() -> list[Any]:
        async with serving(provider) as engine:
            return await answer(engine, request)

    found = asyncio.run(run())
    expected = searched(provider, tokenizer.encode("Say", special_tokens=True), seed, guidance, 12)
    assert [(y.text, y.ended) for y in found[: len(expected)]] == [(tokenizer.decode(y[0]), y[1]) for y in expected]
    assert [y.length for y in found[: len(expected)]] == [len(y[0]) + y[1] for y in expected]
    if flavor == "vllm":
        assert [y.tokens for y in found[: len(expected)]] == [y[0] for y in expected]


@pytest.mark.parametrize("with_tokenizer", [True, False])
@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("seed", range(6))
async def test_characters_stay_whole(tokenizer: HFTokenizer, flavor: str, seed: int, with_tokenizer: bool) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, ("☃", "é", "a", "𝄞"), eos=0.02), flavor=flavor)
    scorer = FakeScorer()
    part = remote_model(provider, with_tokenizer=with_tokenizer)
    engine = Engine({"far": part.model}, {"likes-a": scorer}, {"guided": ("far", CBS)}, components=[part])  # type: ignore[attr-defined]
    for length in (1, 2, 5):
        guidance = replace(CBS, chunk_length=length)
        async with engine:
            [y] = await answer(
                engine, replace(ASK, guidance=guidance, sampling=SamplingParams(max_tokens=30, seed=seed))
            )
        assert "\ufffd" not in y.text
        assert set(y.text) <= set("☃éa𝄞")
        assert len(y.text) > 3 or y.ended
        assert y.length <= 30
    assert not any("\ufffd" in candidate.text for call in scorer.seen for candidate in call)


@pytest.mark.parametrize("flavor", FLAVORS)
async def test_greedy_is_the_likeliest_however_it_is_cut(tokenizer: HFTokenizer, flavor: str) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, eos=0.0), flavor=flavor)
    expected, _ = provider.draw(tokenizer.encode("Say", special_tokens=True), seed=0, length=40, greedy=True)
    sampling = SamplingParams(max_tokens=40, temperature=0)
    async with serving(provider) as engine:
        [plain] = await answer(engine, replace(ASK, model="plain", sampling=sampling))
        assert len(provider.calls) > 2  # it comes piece by piece
        [guided] = await answer(engine, replace(ASK, sampling=sampling))
    assert plain.text == tokenizer.decode(expected).rstrip("\ufffd")
    # By text alone a chunk ends with a whole character, so a search of ten chunks may be some tokens shorter.
    assert guided.text == plain.text if flavor == "vllm" else plain.text.startswith(guided.text)
    assert guided.length > 30
    assert {call["n"] for call in provider.calls} == {1}  # vLLM refuses more


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
    assert session.parse(choice, 2, exact=False) == DrawnChoice(
        (64, 65), (-1.0, -2.0, -3.0), ended=True, ending=tokenizer.eos, alternatives=(((7, -1.0),),) * 3
    )
    assert session.parse(choice, 1, exact=False) == DrawnChoice(
        (64,), (-1.0,), ended=False, alternatives=(((7, -1.0),),)
    )


SPOILT: Sequence[tuple[Any, str]] = [
    (lambda answer: answer.pop("choices"), "choices"),
    (lambda answer: answer.update(choices=[]), "choices"),
    (lambda answer: answer["choices"][0].update(text=7), "choices.0.text"),
    (lambda answer: answer["choices"][0].update(token_ids="abc"), "token_ids"),
    (lambda answer: answer["choices"][0].pop("token_ids"), "token_ids"),
    (lambda answer: answer["choices"][0].update(logprobs=None), "logprobs"),
    (lambda answer: answer["choices"][0]["logprobs"]["token_logprobs"].pop(), "logprobs"),
]


@pytest.mark.parametrize(("spoil", "said"), SPOILT)
async def test_an_answer_that_makes_no_sense_is_one_clear_error(tokenizer: HFTokenizer, spoil: Any, said: str) -> None:
    provider = FakeProvider(tokenizer)
    async with serving(provider) as engine:
        provider.spoil = spoil
        with pytest.raises(UpstreamError, match=said):
            await answer(engine, ASK)


async def test_what_was_bought_is_told(tokenizer: HFTokenizer) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, ("a", "b"), eos=0.0))
    async with serving(provider) as engine:
        events = [event async for event in engine.generate(ASK)]
    last = events[-1]
    assert isinstance(last, RequestFinished)
    assert last.guidance is not None
    assert last.guidance.upstream is not None
    assert last.guidance.upstream.calls == len(provider.calls) == 3 * 2
    assert last.guidance.upstream.completion_tokens == last.guidance.sampled_tokens == 12 * 6
    assert last.guidance.upstream.prompt_tokens == 2 * (3 + 7 + 11)
    assert last.prompt_tokens == 3


async def test_without_a_tokenizer_the_provider_counts_the_prompt(tokenizer: HFTokenizer) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, eos=0.0), flavor="openai")
    request = replace(ASK, model="plain", prompts=(TextPrompt("é☃"),))
    async with serving(provider, with_tokenizer=False) as engine:
        events = [event async for event in engine.generate(request)]
        assert isinstance(events[-1], RequestFinished)
        assert events[-1].prompt_tokens == 5
        assert events[-1].completion_tokens <= 12
        for prompt, field in (
            (TokenPrompt((1, 2)), "prompt"),
            (ChatPrompt(({"role": "user", "content": "x"},)), "messages"),
        ):
            with pytest.raises(RequestError, match="tokenizer") as refusal:
                await answer(engine, replace(request, prompts=(prompt,)))
            assert refusal.value.param == field


async def test_a_conversation_is_rendered_here(tokenizer: HFTokenizer) -> None:
    chat = ChatPrompt(({"role": "user", "content": "Hi"},))
    for flavor in FLAVORS:
        provider = FakeProvider(tokenizer, flavor=flavor)
        async with serving(provider) as engine:
            await answer(engine, replace(ASK, prompts=(chat,)))
        prompt = provider.calls[0]["prompt"]
        assert (prompt if isinstance(prompt, str) else tokenizer.decode(prompt)) == "<user>Hi\n<assistant>"


@pytest.mark.parametrize(
    ("flavor", "sampling", "field"),
    [
        ("openai", {"top_k": 5}, "top_k"),
        ("openai", {"min_p": 0.1}, "min_p"),
        ("openai", {"min_tokens": 2}, "min_tokens"),
        ("openai", {"presence_penalty": 1.0}, "presence_penalty"),
        ("openai", {"logprobs": 6}, "logprobs"),
        ("vllm", {"presence_penalty": 1.0}, "presence_penalty"),
        ("vllm", {"bad_words": ("two words",)}, "bad_words"),
        ("vllm", {"stop_token_ids": (100000,)}, "stop_token_ids"),
    ],
)
async def test_what_a_provider_cannot_do_is_refused_by_name(
    tokenizer: HFTokenizer, flavor: str, sampling: dict[str, Any], field: str
) -> None:
    async with serving(FakeProvider(tokenizer, flavor=flavor)) as engine:
        with pytest.raises(RequestError) as refusal:
            await answer(engine, replace(ASK, sampling=SamplingParams(max_tokens=5, **sampling)))
    assert refusal.value.param == field


async def test_what_a_provider_can_do_is_asked_of_it(tokenizer: HFTokenizer) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, ("a",), eos=0.0))
    sampling = SamplingParams(
        max_tokens=8,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.1,
        frequency_penalty=0.5,
        logit_bias=((5, 2.0),),
        min_tokens=6,
        ignore_eos=True,
        stop_token_ids=(9,),
        allowed_token_ids=(5, 9, 60, 70),
        bad_words=("z",),
    )
    [a] = tokenizer.encode("a", special_tokens=False)
    async with serving(provider) as engine:
        await answer(engine, replace(ASK, sampling=sampling, guidance=replace(CBS, beam_width=1, successors=1)))
    first, second = provider.calls
    for call in (first, second):
        wanted = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1}
        wanted |= {"ignore_eos": True, "stop_token_ids": [9], "allowed_token_ids": [5, 9, 60, 70], "bad_words": ["z"]}
        assert {key: call[key] for key in wanted} == wanted
        assert not {"stop", "include_stop_str_in_output"} & set(call)
    assert (first["min_tokens"], first["logit_bias"]) == (4, {"5": 2.0})
    assert (second["min_tokens"], second["logit_bias"]) == (2, {"5": 2.0, str(a): -0.5 * 4})


async def test_nothing_is_left_to_the_providers_own_defaults(tokenizer: HFTokenizer) -> None:
    """vLLM takes them from the model's generation_config.json, and ours are OpenAI's: no hidden top_k."""
    provider = FakeProvider(tokenizer)
    async with serving(provider) as engine:
        await answer(engine, ASK)
    wanted = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert all({key: call[key] for key in wanted} == wanted for call in provider.calls)


# At the start


@pytest.mark.parametrize(
    ("speaks", "flavor", "with_tokenizer", "token_ids"),
    [
        ("vllm", "auto", True, True),
        ("vllm", "auto", False, False),
        ("openai", "auto", True, False),
        ("vllm", "openai", True, False),
        ("vllm", "vllm", True, True),
    ],
)
async def test_what_is_found_at_the_start(
    tokenizer: HFTokenizer, speaks: str, flavor: str, with_tokenizer: bool, token_ids: bool
) -> None:
    part = remote_model(FakeProvider(tokenizer, flavor=speaks), with_tokenizer=with_tokenizer, flavor=flavor)
    await part.start()
    assert (part.capabilities.context_length, part.capabilities.token_ids) == (500, token_ids)
    await part.stop()


async def test_what_cannot_be_served_names_the_key(tokenizer: HFTokenizer) -> None:
    silent = remote_model(FakeProvider(tokenizer, lists_context=False))
    with pytest.raises(ConfigurationError, match=f"{KEY}.context_length: set it"):
        await silent.start()
    told = remote_model(FakeProvider(tokenizer, lists_context=False), context_length=77)
    await told.start()
    assert told.capabilities.context_length == 77
    with pytest.raises(ConfigurationError, match=f"{KEY}.flavor"):
        await remote_model(FakeProvider(tokenizer, flavor="openai"), flavor="vllm").start()
    other = FakeProvider(tokenizer)
    other.spoil = lambda answer: answer["choices"][0].update(prompt_token_ids=[1, 2, 3])
    with pytest.raises(ConfigurationError, match=f"{KEY}.tokenizer"):
        await remote_model(other).start()
    assert not other.running
    await told.stop()


async def test_a_provider_that_is_down_is_waited_for(tokenizer: HFTokenizer) -> None:
    provider = FakeProvider(tokenizer)
    provider.down = True
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def sleep(_: float) -> None:
        asked.set()
        await go_on.wait()
        go_on.clear()

    part = remote_model(provider)
    part._sleep = sleep
    engine = Engine({"far": part.model}, {}, {"plain": ("far", None)}, components=[part])  # type: ignore[attr-defined]
    async with engine:
        assert not engine.ready
        assert engine.served_models["plain"].context_length is None
        with pytest.raises(UnavailableError) as refusal:
            await answer(engine, replace(ASK, model="plain"))
        assert refusal.value.retry_after_s > 0
        await asked.wait()
        asked.clear()
        go_on.set()  # still down
        await asked.wait()
        assert not engine.ready
        provider.down = False
        go_on.set()
        assert part._retrying is not None
        await part._retrying
        assert engine.ready
        assert engine.served_models["plain"].context_length == 500
        await answer(engine, replace(ASK, model="plain"))
    assert not provider.running


async def test_the_context_is_checked_before_anything_is_bought(tokenizer: HFTokenizer) -> None:
    provider = FakeProvider(tokenizer)
    async with serving(provider) as engine:
        with pytest.raises(ContextLengthError, match="maximum context length is 500"):
            await answer(engine, replace(ASK, prompts=(TextPrompt("x" * 495),)))
    assert not provider.calls


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_who_leaves_ends_the_calls(tokenizer: HFTokenizer, model: str) -> None:
    provider = FakeProvider(tokenizer)
    async with serving(provider) as engine:
        reached = asyncio.Event()

        async def gate() -> None:
            reached.set()
            await asyncio.Event().wait()

        provider.gate = gate
        asking = asyncio.create_task(answer(engine, replace(ASK, model=model)))
        await reached.wait()
        assert provider.open_calls > 0
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert provider.open_calls == 0
        assert engine.admission.rows_running == 0


async def test_a_plain_answer_comes_as_it_is_drawn(tokenizer: HFTokenizer) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, ("a", "b"), eos=0.0))
    async with serving(provider) as engine:
        events = [event async for event in engine.generate(replace(ASK, model="plain"))]
    assert len([event for event in events if isinstance(event, TextCommitted)]) > 1


@pytest.mark.parametrize("flavor", FLAVORS)
async def test_likely_alternatives_are_told(tokenizer: HFTokenizer, flavor: str) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, ("a", "b"), eos=0.0), flavor=flavor)
    [a, b] = tokenizer.encode("ab", special_tokens=False)
    names = {"vllm": (f"token_id:{a}", f"token_id:{b}"), "openai": ("a", "b")}[flavor]

    def spoil(answer: dict[str, Any]) -> None:
        for choice in answer["choices"]:
            told = choice["logprobs"]
            told["top_logprobs"] = [{names[1]: -0.9, names[0]: -0.5} for _ in told["tokens"]]

    provider.spoil = spoil
    async with serving(provider) as engine:
        [y] = await answer(engine, replace(ASK, sampling=SamplingParams(max_tokens=6, seed=1, logprobs=2)))
        [model] = engine._planner.large_models.values()
        best = [[(model.decoder.token_text(token).text, nats) for token, nats in place] for place in y.alternatives]
    assert best == [[("a", -0.5), ("b", -0.9)]] * 6


@given(st.text("aé☃𝄞 ", max_size=8), st.integers(0, 10))
def test_whole_characters_never_cut_one(text: str, length: int) -> None:
    pieces = [bytes([byte]) for byte in text.encode()]
    kept = whole_character_tokens(pieces, length)
    kept_text = b"".join(pieces[:kept]).decode()
    assert text.startswith(kept_text)
    if kept > length:  # only where less would be nothing
        assert len(kept_text) == 1
    else:
        assert kept == len(pieces) or len((kept_text + text[len(kept_text)]).encode()) > length


@pytest.mark.parametrize(("length", "kept"), [(1, 1), (2, 1), (3, 1), (4, 4), (5, 4), (6, 4)])
def test_half_a_character_may_be_written_as_nothing(length: int, kept: int) -> None:
    """As vLLM does: two tokens without text before the one that completes their character."""
    pieces = [b"a", b"", b"", "☃".encode(), b"", b""]
    assert whole_character_tokens(pieces, length) == kept
    assert whole_character_tokens(pieces[1:], length) == 3, "the fewest beyond the length, where less would be nothing"
    assert whole_character_tokens(pieces[4:], length) == 0


@given(st.text("aé☃ ", max_size=8), st.lists(st.sampled_from(["", "\ufffd", "x"]), max_size=5))
def test_pieces_join_to_the_text_whatever_the_tokens_say(text: str, names: list[str]) -> None:
    pieces = token_bytes_of_choice(names, text)
    assert len(pieces) == len(names)
    if names:
        assert b"".join(pieces).decode().rstrip("\ufffd") == text
