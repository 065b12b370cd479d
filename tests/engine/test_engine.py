"""The engine over fakes: what is streamed and reported, what is refused, and that everything is freed."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import DEFAULT_GUIDANCE, EOS, FakeLargeModel, FakeScorer, fake_engine, letters
from w2s_core.config import Limits
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import ChoiceFinished, Event, RequestFinished, TextCommitted
from w2s_core.errors import (
    ConfigurationError,
    DeadlineError,
    OverloadedError,
    WorkerError,
)
from w2s_core.scorers.likelihood import LikelihoodScorer
from w2s_core.types import GenerationRequest, Guidance, Hypothesis, SamplingParams, TextPrompt, TokenPrompt

ASK = GenerationRequest("guided", (TextPrompt("x"),), SamplingParams(max_tokens=12, seed=1))


async def events_of(engine: Engine, request: GenerationRequest) -> list[Event]:
    return [event async for event in engine.generate(request)]


def texts(events: list[Event]) -> dict[int, str]:
    streamed: dict[int, str] = {}
    for event in events:
        if isinstance(event, TextCommitted):
            streamed[event.index] = streamed.get(event.index, "") + event.text
    return streamed


def choices(events: list[Event]) -> dict[int, ChoiceFinished]:
    return {event.index: event for event in events if isinstance(event, ChoiceFinished)}


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    stop=st.lists(st.text("ab ", min_size=1, max_size=3), max_size=2),
    w=st.integers(1, 4),
    k=st.integers(1, 3),
    length=st.integers(1, 6),
    n=st.integers(1, 2),
    guided=st.booleans(),
)
def test_what_is_streamed_is_the_answer(
    seed: int, stop: list[str], w: int, k: int, length: int, n: int, guided: bool
) -> None:
    sampling = SamplingParams(max_tokens=20, seed=seed, stop=tuple(stop))
    guidance = replace(DEFAULT_GUIDANCE, beam_width=max(w, n), successors=k, chunk_length=length)
    request = GenerationRequest("guided", (TextPrompt("x"),), sampling, guidance if guided else Guidance("none"), n)
    events = asyncio.run(events_of(fake_engine(), request))
    finished = choices(events)
    assert sorted(finished) == list(range(n))
    for index, choice in finished.items():
        assert texts(events).get(index, "") == choice.hypothesis.text
        assert not any(s in choice.hypothesis.text for s in stop)
    assert isinstance(events[-1], RequestFinished)


async def test_text_is_committed_before_the_end() -> None:
    events = await events_of(fake_engine(), replace(ASK, sampling=SamplingParams(max_tokens=60, seed=2)))
    committed = [event for event in events if isinstance(event, TextCommitted)]
    assert len(committed) > 3


async def test_usage_counts_returned_tokens_and_the_report_what_was_searched() -> None:
    large = FakeLargeModel(letters(eos=0))
    events = await events_of(fake_engine(large), ASK)
    last = events[-1]
    assert isinstance(last, RequestFinished)
    assert (last.prompt_tokens, last.completion_tokens) == (1, 12)
    assert last.guidance is not None
    assert (last.guidance.chunks, last.guidance.sampled_tokens) == (4, 4 * 3 * 4)
    assert last.guidance.tree is None
    plain = (await events_of(fake_engine(), replace(ASK, model="plain")))[-1]
    assert isinstance(plain, RequestFinished)
    assert plain.guidance is None


async def test_running_usage_grows_to_the_final_usage() -> None:
    for model in ("plain", "guided"):
        events = await events_of(fake_engine(), replace(ASK, model=model, n=2))
        last = events[-1]
        assert isinstance(last, RequestFinished)
        running = [e.completion_tokens for e in events if isinstance(e, TextCommitted)]
        assert running == sorted(running)
        assert 0 < running[-1] <= last.completion_tokens
        assert all(e.prompt_tokens == 1 for e in events if isinstance(e, TextCommitted))


async def test_running_usage_never_exceeds_the_final_usage() -> None:
    """The answers in the beam differ in length, and the shortest may win."""
    engine, lengths = fake_engine(FakeLargeModel(letters(eos=0.2))), set()
    for seed in range(20):
        events = await events_of(engine, replace(ASK, sampling=SamplingParams(max_tokens=12, seed=seed)))
        last = events[-1]
        assert isinstance(last, RequestFinished)
        assert all(e.completion_tokens <= last.completion_tokens for e in events if isinstance(e, TextCommitted))
        lengths.add(last.completion_tokens)
    assert len(lengths) > 3


async def test_the_worst_answer_is_repeated_if_the_beam_has_fewer_than_n() -> None:
    request = replace(
        ASK, sampling=SamplingParams(max_tokens=1, seed=1), guidance=replace(DEFAULT_GUIDANCE, beam_width=4), n=4
    )
    found = choices(await events_of(fake_engine(FakeLargeModel(letters("ab", eos=0))), request))
    assert [found[index].hypothesis.text for index in range(4)] == ["a", "b", "b", "b"]


async def test_the_tree_names_parents_and_what_was_kept() -> None:
    request = replace(ASK, guidance=replace(DEFAULT_GUIDANCE, trace=True))
    events = await events_of(fake_engine(), request)
    last = events[-1]
    assert isinstance(last, RequestFinished)
    assert last.guidance is not None
    assert last.guidance.tree is not None
    [tree] = last.guidance.tree
    assert len(tree) == last.guidance.chunks
    for before, chunk in zip(tree, tree[1:], strict=False):
        for candidate in chunk:
            assert candidate.parent is not None
            parent = before[candidate.parent]
            assert parent.kept
            assert candidate.text.startswith(parent.text)
    answer = choices(events)[0].hypothesis
    assert answer.text in {c.text for chunk in tree for c in chunk if c.kept}


async def test_several_prompts_have_their_own_choices() -> None:
    request = replace(ASK, prompts=(TextPrompt("x"), TokenPrompt((1, 2)), TextPrompt("")), n=2, model="plain")
    events = await events_of(fake_engine(), request)
    assert sorted(choices(events)) == list(range(6))
    alone = await events_of(fake_engine(), replace(request, prompts=(TokenPrompt((1, 2)),)))
    assert texts(alone)[0] == texts(events)[2], "a prompt's answer must not depend on its neighbours"


async def test_several_pairs_add_up_with_their_weights() -> None:
    guidance = replace(DEFAULT_GUIDANCE, pairs={"positive": 2.0, "polite": -0.5})
    [choice] = choices(await events_of(fake_engine(), replace(ASK, guidance=guidance))).values()
    y = choice.hypothesis
    assert choice.guided
    assert y.scores == {"positive": y.text.count("a") - 0.5 * y.text.count("b"), "polite": -len(y.text)}
    assert y.score == 2.0 * y.scores["positive"] - 0.5 * y.scores["polite"]


async def test_the_likelihood_of_an_answer_includes_its_eos() -> None:
    ended = Hypothesis((1, 2), logprobs=(-1.0, -2.0, -6.0), ended=True, finish_reason="stop")
    cut = Hypothesis((1, 2), logprobs=(-1.0, -2.0), finish_reason="length")
    nothing = Hypothesis((), logprobs=(-4.0,), ended=True, finish_reason="stop")
    scores = await LikelihoodScorer().score([ended, cut, nothing])
    assert [score.total for score in scores] == [-3.0, -1.5, -4.0]


async def test_best_of_n_keeps_as_many_as_are_returned() -> None:
    guidance = Guidance("best_of_n", {"positive": 1.0}, beam_width=4, successors=8)
    events = await events_of(fake_engine(), replace(ASK, guidance=guidance, n=3))
    last = events[-1]
    assert isinstance(last, RequestFinished)
    assert last.guidance is not None
    assert (last.guidance.beam_width, last.guidance.successors) == (3, 8)
    assert sorted(choices(events)) == [0, 1, 2]


async def test_closing_the_iterator_frees_everything() -> None:
    large, scorer = FakeLargeModel(letters(eos=0)), FakeScorer()
    engine = fake_engine(large, {"positive": scorer})
    for model in ("plain", "guided"):
        request = replace(ASK, model=model, sampling=SamplingParams(max_tokens=900, seed=1))
        async with aclosing(engine.generate(request)) as events:
            async for _ in events:
                break
        assert (large.open_sessions, scorer.open_sessions, engine.admission.rows_running) == (0, 0, 0)


async def test_the_queue_is_bounded_and_rows_are_counted() -> None:
    release = asyncio.Event()
    large = FakeLargeModel(gate=release.wait)
    engine = fake_engine(large, limits=Limits(max_rows=4, max_queued_rows=4))
    running = asyncio.create_task(events_of(engine, ASK))
    waiting = asyncio.create_task(events_of(engine, ASK))
    while engine.admission.rows_waiting < 4:
        await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await events_of(engine, ASK)
    release.set()
    await asyncio.gather(running, waiting)
    assert engine.admission.rows_running == 0


async def test_a_request_refused_for_its_second_prompt_gives_back_the_rows_of_the_first() -> None:
    release = asyncio.Event()
    engine = fake_engine(FakeLargeModel(gate=release.wait), limits=Limits(max_rows=8, max_queued_rows=0))
    running = asyncio.create_task(events_of(engine, ASK))
    while not engine.admission.rows_running:
        await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await events_of(engine, replace(ASK, prompts=(TextPrompt("x"), TextPrompt("y"))))
    assert (engine.admission.rows_running, engine.admission.rows_waiting) == (4, 0)
    release.set()
    await running


async def test_a_request_past_its_deadline_ends_and_frees() -> None:
    large = FakeLargeModel(gate=asyncio.Event().wait)
    engine = fake_engine(large, limits=Limits(request_timeout_s=0.01))
    with pytest.raises(DeadlineError):
        await events_of(engine, ASK)
    assert (large.open_sessions, engine.admission.rows_running) == (0, 0)


async def test_a_failing_pair_fails_the_request_and_frees() -> None:
    def broken(text: str, ended: bool) -> float:
        raise WorkerError("the device is on fire")

    large = FakeLargeModel()
    engine = fake_engine(large, {"positive": FakeScorer(broken)})
    with pytest.raises(WorkerError, match="fire"):
        await events_of(engine, ASK)
    assert (large.open_sessions, engine.admission.rows_running) == (0, 0)


async def test_the_pair_hears_of_an_end_only_when_the_model_ended() -> None:
    scorer = FakeScorer()
    sampling = SamplingParams(max_tokens=6, seed=1, stop=("b",))
    large = FakeLargeModel(lambda prompt, answer: {ord("a"): 0.6, ord("b"): 0.2, EOS: 0.2})
    await events_of(fake_engine(large, {"positive": scorer}), replace(ASK, sampling=sampling))
    seen = [y for candidates in scorer.seen for y in candidates]
    assert {y.ended for y in seen} == {True, False}
    for y in seen:
        assert "b" not in y.text, "past the stop string"
        assert y.finish_reason == "stop" if y.ended else True
    assert all(y.finish_reason is None for y in seen if len(y.tokens) == 6 and not y.ended)


async def test_parts_stop_at_the_same_time_and_all_of_them_whatever_fails() -> None:
    both = asyncio.Barrier(2)

    class Part:
        ready = True
        stopped = False

        async def start(self) -> None: ...

        async def stop(self) -> None:
            await both.wait()
            self.stopped = True

    class Broken(Part):
        async def stop(self) -> None:
            raise RuntimeError("cannot stop")

    parts = [Part(), Broken(), Part()]
    with pytest.raises(RuntimeError, match="cannot stop"):
        async with asyncio.timeout(60), Engine({}, {}, {}, components=parts):
            pass
    assert [part.stopped for part in parts] == [True, False, True]


async def test_a_part_that_cannot_start_stops_those_that_did() -> None:
    class Part:
        ready = True
        running = False

        def __init__(self, *, broken: bool = False) -> None:
            self.broken = broken

        async def start(self) -> None:
            if self.broken:
                raise ConfigurationError("no")
            self.running = True

        async def stop(self) -> None:
            self.running = False

    parts = [Part(), Part(), Part(broken=True)]
    engine = Engine({}, {}, {}, worker_pool=parts[0], components=parts[1:])
    with pytest.raises(ConfigurationError):
        await engine.__aenter__()
    assert not any(part.running for part in parts)
    async with Engine({}, {}, {}, worker_pool=parts[0], components=[parts[1]]) as engine:
        assert engine.ready
        parts[1].ready = False
        assert not engine.ready
    assert not any(part.running for part in parts)
