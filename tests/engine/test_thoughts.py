"""Reasoning models in the engine: thoughts first, plainly; then the answer, with all that the request asks of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import DEFAULT_GUIDANCE, EOS, FakeLargeModel, FakeScorer, fake_engine, letters
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import ChoiceFinished, RequestFinished, TextCommitted
from w2s_core.errors import RequestError
from w2s_core.types import ChatPrompt, GenerationRequest, Grammar, SamplingParams, Tokens

CHAT = ChatPrompt(({"role": "user", "content": "Hi"},))
THINKING = b"<think>\nHm. aXb\n</think>\n\n"


def thinking(
    answers: Callable[[Tokens], dict[int, float]], thoughts: bytes = THINKING, **options: object
) -> FakeLargeModel:
    """A model that thinks exactly `thoughts` and then draws from `answers(tokens behind them)`."""

    def distribution(prompt: Tokens, answer: Tokens) -> dict[int, float]:
        drawn = prompt[len(start) :] + answer
        if len(drawn) < len(thoughts):
            return {thoughts[len(drawn)]: 1.0}
        return answers(drawn[len(thoughts) :])

    large = FakeLargeModel(distribution, **options)  # type: ignore[arg-type]
    start = large.encode(CHAT)
    large.reasoning_format = "qwen3"
    return large


def wild(tokens: Tokens) -> dict[int, float]:
    return dict(letters("abX", eos=0.1)((), tokens))


@dataclass
class Answered:
    """What a request's events say of each choice."""

    thoughts: dict[int, str] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    finished: dict[int, ChoiceFinished] = field(default_factory=dict)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    end: RequestFinished | None = None


async def ask(engine: Engine, model: str = "plain", **fields: object) -> Answered:
    found = Answered()
    request = GenerationRequest(model, (CHAT,), **{"sampling": SamplingParams(seed=1, max_tokens=60), **fields})  # type: ignore[arg-type]
    async for event in engine.generate(request):
        match event:
            case TextCommitted():
                texts = found.thoughts if event.thought else found.texts
                texts[event.index] = texts.get(event.index, "") + event.text
                found.tokens.setdefault(event.index, []).extend(token.token for token in event.tokens)
            case ChoiceFinished():
                assert event.index not in found.finished
                found.finished[event.index] = event
                assert found.texts.get(event.index, "") == event.hypothesis.text
                assert found.thoughts.get(event.index, "") == (event.thoughts or "")
                found.tokens.setdefault(event.index, []).extend(token.token for token in event.tokens)
            case RequestFinished():
                found.end = event
    assert found.end is not None
    return found


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_thoughts_come_first_and_apart(model: str) -> None:
    scorer = FakeScorer()
    found = await ask(fake_engine(thinking(wild), {"positive": scorer}), model, n=2)
    assert found.thoughts == {0: "Hm. aXb", 1: "Hm. aXb"}
    assert all(set(text) <= set("abX") for text in found.texts.values())
    assert found.end is not None
    assert found.end.reasoning_tokens == 2 * len(THINKING)
    lengths = [event.hypothesis.length for event in found.finished.values()]
    assert found.end.completion_tokens == 2 * len(THINKING) + sum(lengths)
    assert all("Hm" not in y.text for round_ in scorer.seen for y in round_), "the pair never sees thoughts"


async def test_a_search_draws_its_thoughts_once() -> None:
    found = await ask(
        fake_engine(thinking(wild)), "guided", n=2, sampling=SamplingParams(seed=1, max_tokens=len(THINKING) + 6)
    )
    assert found.end is not None
    assert found.end.guidance is not None
    assert found.end.guidance.sampled_tokens <= len(THINKING) + 1 + 2 * 12


async def test_plain_choices_think_for_themselves() -> None:
    def distribution(prompt: Tokens, answer: Tokens) -> dict[int, float]:
        text = bytes(prompt[len(b"<user>Hi") :] + answer)
        if not text.startswith(b"<think>"):
            return {b"<think>"[len(text)]: 1.0}
        if b"</think>" in text:
            return {EOS: 1.0}
        tail = next((b"</think>"[:i] for i in range(7, 0, -1) if text.endswith(b"</think>"[:i])), b"")
        return {b"</think>"[len(tail)]: 1.0} if tail else {ord("a"): 0.4, ord("b"): 0.4, ord("<"): 0.2}

    large = FakeLargeModel(distribution)
    large.reasoning_format = "qwen3"
    found = await ask(fake_engine(large), n=4, sampling=SamplingParams(seed=5, max_tokens=200))
    assert len(set(found.thoughts.values())) > 1
    assert all(event.hypothesis.finish_reason == "stop" for event in found.finished.values())


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_stop_strings_hold_for_the_answer_alone(model: str) -> None:
    sampling = SamplingParams(seed=1, max_tokens=60, stop=("X", "Hm"), min_tokens=len(THINKING) + 2)
    found = await ask(fake_engine(thinking(lambda tokens: {b"abXab"[len(tokens) % 5]: 1.0})), model, sampling=sampling)
    assert found.thoughts == {0: "Hm. aXb"}
    assert found.texts == {0: "ab"}
    assert found.finished[0].hypothesis.finish_reason == "stop"


@pytest.mark.parametrize("model", ["plain", "guided"])
@pytest.mark.parametrize(("max_tokens", "thoughts"), [(1, ""), (8, ""), (10, "Hm"), (len(THINKING), "Hm. aXb")])
async def test_an_answer_cut_inside_its_thoughts(model: str, max_tokens: int, thoughts: str) -> None:
    sampling = SamplingParams(seed=1, max_tokens=max_tokens)
    found = await ask(fake_engine(thinking(wild)), model, sampling=sampling)
    assert found.end is not None
    assert (found.finished[0].thoughts, found.finished[0].hypothesis.text) == (thoughts, "" if max_tokens > 1 else "<")
    assert found.finished[0].hypothesis.finish_reason == "length"
    assert found.end.completion_tokens == max_tokens


async def test_an_answer_that_ends_inside_its_thoughts() -> None:
    found = await ask(fake_engine(thinking(lambda _: {EOS: 1.0}, b"<think>Hm.")), "guided")
    assert found.finished[0].hypothesis.finish_reason == "stop"
    assert found.finished[0].thoughts == "Hm."
    assert found.end is not None
    assert found.end.completion_tokens == found.end.reasoning_tokens == len(b"<think>Hm.") + 1


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_a_model_that_does_not_think_answers_as_any_other(model: str) -> None:
    other = FakeLargeModel(letters("<ab", eos=0.1))
    large = FakeLargeModel(letters("<ab", eos=0.1))
    large.reasoning_format = "qwen3"
    found, expected = [await ask(fake_engine(each), model, n=2) for each in (large, other)]
    assert found.texts == expected.texts
    assert found.end is not None
    assert expected.end is not None
    assert (found.end.reasoning_tokens, expected.end.reasoning_tokens) == (0, None)
    assert found.end.completion_tokens == expected.end.completion_tokens
    assert [event.thoughts for event in found.finished.values()] == ["", ""]


async def test_the_pairs_context_bounds_the_answer_alone() -> None:
    found = await ask(fake_engine(thinking(lambda _: {97: 0.5, 98: 0.5}), {"positive": FakeScorer(room=5)}), "guided")
    assert found.thoughts == {0: "Hm. aXb"}
    assert len(found.texts[0]) == 5


async def test_the_template_may_close_the_thoughts() -> None:
    large = thinking(wild, b"")
    encode = large.decoder.encode
    large.encode = lambda prompt: encode("<think>\n\n</think>\n\n")  # type: ignore[method-assign]
    found = await ask(fake_engine(large))
    assert found.thoughts == {}
    assert found.end is not None
    assert found.end.reasoning_tokens == 0


async def test_a_search_of_both_scores_both() -> None:
    scorer = FakeScorer()
    guidance = replace(DEFAULT_GUIDANCE, thoughts=True)
    sampling = SamplingParams(seed=1, max_tokens=60, stop=("X", ">"))
    engine = fake_engine(thinking(lambda tokens: {b"abXab"[len(tokens) % 5]: 1.0}), {"positive": scorer})
    found = await ask(engine, "guided", guidance=guidance, sampling=sampling)
    assert found.thoughts == {0: "Hm. aXb"}
    assert found.texts == {0: "ab"}
    assert scorer.seen[-1][0].text == THINKING.decode() + "ab"
    assert found.end is not None
    assert found.end.reasoning_tokens == len(THINKING)
    assert found.end.completion_tokens == len(THINKING) + 2


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_an_answer_is_drawn_with_other_random_numbers_than_its_thoughts(model: str) -> None:
    def distribution(prompt: Tokens, answer: Tokens) -> dict[int, float]:
        drawn = (prompt + answer)[len(b"<user>Hi") :]
        if len(drawn) < len(b"<think>"):
            return {b"<think>"[len(drawn)]: 1.0}
        thoughts = drawn[len(b"<think>") :]
        if len(thoughts) == 20 or 20 < len(thoughts) < 20 + len(b"</think>"):
            return {b"</think>"[len(thoughts) - 20]: 1.0}
        return {97: 0.5, 98: 0.5}

    large = FakeLargeModel(distribution)
    large.reasoning_format = "qwen3"
    one = replace(DEFAULT_GUIDANCE, beam_width=1, successors=1)
    sampling = SamplingParams(seed=1, max_tokens=7 + 20 + 8 + 27)
    found = await ask(fake_engine(large), model, sampling=sampling, guidance=one if model == "guided" else None)
    assert found.thoughts[0] != found.texts[0][7:], "the same positions of the same lineage"


async def test_stop_strings_hold_where_a_model_that_could_think_does_not() -> None:
    large = FakeLargeModel(lambda prompt, answer: {b"a<bXab"[len(answer) % 6]: 1.0})
    large.reasoning_format = "qwen3"
    guidance = replace(DEFAULT_GUIDANCE, thoughts=True)
    found = await ask(fake_engine(large), "guided", guidance=guidance, sampling=SamplingParams(stop=("X",)))
    assert (found.thoughts, found.texts) == ({}, {0: "a<b"})


async def test_a_grammar_cannot_follow_thoughts_that_are_searched() -> None:
    engine = fake_engine(thinking(wild))
    large = engine._planner.large_models["large"]

    async def accept(grammar: Grammar) -> Grammar:
        return grammar

    large.check_grammar = accept  # type: ignore[method-assign]
    sampling = SamplingParams(grammar=Grammar("regex", "a", "guided_regex"))
    with pytest.raises(RequestError) as refused:
        await ask(engine, "guided", guidance=replace(DEFAULT_GUIDANCE, thoughts=True), sampling=sampling)
    assert refused.value.param == "guidance.thoughts"


async def test_the_pair_reads_no_thoughts_of_earlier_turns_unless_asked() -> None:
    said = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm.", "reasoning": "Hm."}
    chat = ChatPrompt((*CHAT.messages, said, *CHAT.messages))
    for thoughts in (False, True):
        scorer = FakeScorer()
        engine = fake_engine(scorers={"positive": scorer})
        request = GenerationRequest(
            "guided", (chat,), SamplingParams(max_tokens=3), replace(DEFAULT_GUIDANCE, thoughts=thoughts)
        )
        async for _ in engine.generate(request):
            pass
        [prompt] = scorer.prompts
        assert isinstance(prompt, ChatPrompt)
        assert ("reasoning_content" in prompt.messages[1], "reasoning" in prompt.messages[1]) == (thoughts, thoughts)


@given(
    pieces=st.lists(st.sampled_from(["<think>", "</think>", "\n", "a", "é", "🙂", "<", " "]), max_size=8),
    seed=st.integers(0, 3),
    guided=st.sampled_from([None, False, True]),
    max_tokens=st.integers(1, 40),
)
async def test_whatever_is_drawn_adds_up(pieces: list[str], seed: int, guided: bool | None, max_tokens: int) -> None:
    """Tokens, text and usage agree for any thoughts, plain, guided, and searched together with the answer."""
    thoughts = "".join(["<think>", *pieces]).encode()
    guidance = None if guided is None else replace(DEFAULT_GUIDANCE, thoughts=guided)
    found = await ask(
        fake_engine(thinking(wild, thoughts)),
        "plain" if guidance is None else "guided",
        guidance=guidance,
        sampling=SamplingParams(seed=seed, max_tokens=max_tokens),
        with_tokens=True,
    )
    assert found.end is not None
    tokens = found.tokens[0]
    assert len(tokens) == found.end.completion_tokens
    assert found.end.reasoning_tokens is not None
    raw = bytes(token for token in tokens if token != EOS)
    assert raw.startswith(thoughts[: len(raw)])
    text = raw.decode("utf-8", "ignore")
    answer = found.texts.get(0, "")
    assert text.endswith(answer)
    assert len(answer.encode()) <= found.end.completion_tokens - found.end.reasoning_tokens
    if "</think>" in text:
        assert found.thoughts.get(0, "") == text.removeprefix("<think>").split("</think>")[0].strip()
