"""A search tree that is streamed round by round (`guidance.trace` "stream"): it is that of `trace: true`, in time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_engine import choices, events_of
from tests.engine.test_thoughts import CHAT, thinking, wild
from tests.fakes import DEFAULT_GUIDANCE, FakeLargeModel, FakeScorer, fake_engine, letters
from w2s_core.engine import planning
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import Event, RequestFinished, RoundFinished, TextCommitted
from w2s_core.guidance import Guidance
from w2s_core.search.tree import RoundTrace
from w2s_core.types import Candidate, GenerationRequest, SamplingParams, TextPrompt

ASK = GenerationRequest("guided", (TextPrompt("x"),), SamplingParams(max_tokens=12, seed=1))
METHODS = {
    "beam": Guidance("cbs", {"positive": 1.0}, 3, 2, 3),
    "two pairs, ranked": Guidance("cbs", {"positive": 2.0, "polite": -0.1}, 3, 3, 4, repetition=1.0, combine="min"),
    "drawn": Guidance("cbs", {"positive": 1.0}, 3, 3, 2, select={"softmax": 1.0}, early_stopping=True),
    "falling": Guidance("cbs", {"positive": 1.0}, 3, 2, 2, schedule={"decay": 0.7}),
    "best of n": Guidance("best_of_n", {"positive": 1.0}, 4, 6, 3),
    "rejection": Guidance("best_of_n", {"positive": 1.0}, 4, 8, 3, early_rejection=0.5),
}


def rounds_of(events: Sequence[Event], prompt: int = 0) -> list[RoundFinished]:
    return [event for event in events if isinstance(event, RoundFinished) and event.prompt == prompt]


def texts_of(rounds: Sequence[RoundFinished]) -> list[list[str]]:
    """The whole text of every candidate of every round."""
    rebuilt: list[list[str]] = []
    for round_ in rounds:
        before = rebuilt[-1] if rebuilt else []
        parents = ["" if node.parent is None else before[node.parent] for node in round_.candidates]
        offsets = [node.offset <= len(text) for node, text in zip(round_.candidates, parents, strict=True)]
        assert all(offsets)
        rebuilt.append([p[: node.offset] + node.text for p, node in zip(parents, round_.candidates, strict=True)])
    return rebuilt


def last_of(events: Sequence[Event]) -> RequestFinished:
    last = events[-1]
    assert isinstance(last, RequestFinished)
    return last


async def both(engine: Engine, request: GenerationRequest) -> tuple[list[Event], list[Event]]:
    """The events of a request, with its tree streamed and with its tree at the end."""
    guidance = request.guidance or DEFAULT_GUIDANCE
    streamed, whole = [
        await events_of(engine, replace(request, guidance=replace(guidance, trace=trace))) for trace in ("stream", True)
    ]
    return streamed, whole


def check_is_the_tree(rounds: Sequence[RoundFinished], tree: Sequence[Sequence[Candidate]]) -> list[list[str]]:
    """The rounds say what the tree says. Returns their texts."""
    texts = texts_of(rounds)
    assert [round_.chunk for round_ in rounds] == list(range(1, len(tree) + 1))
    for round_, chunk, whole in zip(rounds, tree, texts, strict=True):
        assert [node.id for node in round_.candidates] == list(range(len(whole)))
        for node, text, known in zip(round_.candidates, whole, chunk, strict=False):
            assert (text, node.parent, node.score, node.rank, dict(node.scores), node.finish_reason) == (
                *(known.text, known.parent, known.score, known.rank, dict(known.scores), known.finish_reason),
            )
            assert (node.fate in ("kept", "finished")) == known.kept
            assert (node.fate == "finished") == (known.kept and known.finish_reason is not None)
        rest = round_.candidates[len(chunk) :]
        assert all(node.text == "" for node in rest if node.fate != "merged")
    return texts


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**63),
    method=st.sampled_from(sorted(METHODS)),
    stop=st.lists(st.text("ab ", min_size=1, max_size=3), max_size=2),
    n=st.integers(1, 3),
    length=st.integers(1, 6),
    eos=st.sampled_from([0.0, 0.05, 0.3]),
    options=st.fixed_dictionaries({"with_tokens": st.booleans()}),
)
def test_the_rounds_are_the_tree_and_end_in_the_answers(
    seed: int, method: str, stop: list[str], n: int, length: int, eos: float, options: dict[str, Any]
) -> None:
    sampling = SamplingParams(max_tokens=20, seed=seed, stop=tuple(stop))
    guidance = replace(METHODS[method], chunk_length=length)
    request = GenerationRequest("guided", (TextPrompt("x"),), sampling, guidance, n, **options)
    events, whole = asyncio.run(both(fake_engine(FakeLargeModel(letters(eos=eos))), request))
    assert [event for event in events[:-1] if not isinstance(event, RoundFinished)] == whole[:-1]
    report = last_of(whole).guidance
    assert report is not None
    assert report.tree is not None
    rounds = rounds_of(events)
    texts = check_is_the_tree(rounds, report.tree[0])
    assert last_of(events).guidance == replace(report, tree=None)
    check_ends_in_the_answers(rounds, texts, {i: choice.hypothesis.text for i, choice in choices(events).items()})
    check_costs(rounds, last_of(events))


def check_ends_in_the_answers(
    rounds: Sequence[RoundFinished], texts: Sequence[Sequence[str]], answers: dict[int, str]
) -> None:
    """The beam of the last round, by rank, holds the answers; those of all rounds share what was committed."""
    assert all(list(round_.choices) == sorted(answers) for round_ in rounds)
    beam = [node for node in rounds[-1].candidates if node.fate in ("kept", "finished")]
    first, highest = answers[min(answers)], max(node.rank for node in beam)
    assert first in {texts[-1][node.id] for node in beam if node.rank == highest}
    assert set(answers.values()) <= {texts[-1][node.id] for node in beam}
    for round_, whole in zip(rounds, texts, strict=True):
        shared = {whole[node.id][: round_.committed] for node in round_.candidates if node.fate in ("kept", "finished")}
        assert shared == {first[: round_.committed]}
        assert all(answer.startswith(*shared) for answer in answers.values())


def check_costs(rounds: Sequence[RoundFinished], end: RequestFinished) -> None:
    for before, after in pairwise(rounds):
        assert before.committed <= after.committed
        assert before.sampled_tokens <= after.sampled_tokens
        assert before.scored_tokens <= after.scored_tokens
        assert 0 < before.seconds < after.seconds
    assert end.guidance is not None
    assert (rounds[-1].sampled_tokens, rounds[-1].scored_tokens) == (
        *(end.guidance.sampled_tokens, end.guidance.scored_tokens),
    )


async def test_a_round_comes_before_the_text_that_it_commits() -> None:
    guidance = replace(DEFAULT_GUIDANCE, trace="stream")
    sampling = SamplingParams(max_tokens=60, seed=2)
    sent = ahead = 0
    for event in await events_of(fake_engine(), replace(ASK, sampling=sampling, guidance=guidance)):
        if isinstance(event, RoundFinished):
            assert sent == ahead, "what the round before committed has been sent"
            ahead = event.committed
        elif isinstance(event, TextCommitted):
            sent += len(event.text)
    assert sent > ahead > 0


async def test_who_does_not_ask_gets_no_rounds_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RoundTrace, "candidates", None)
    for trace in (False, True):
        events = await events_of(fake_engine(), replace(ASK, guidance=replace(DEFAULT_GUIDANCE, trace=trace)))
        assert not rounds_of(events)


@pytest.mark.parametrize("guidance", [Guidance("none", trace="stream"), Guidance("cbs", {"positive": 1.0})])
async def test_what_does_not_search_has_no_rounds(guidance: Guidance) -> None:
    scored = {"sampling": SamplingParams(max_tokens=0)} if guidance.method == "cbs" else {}
    request = replace(ASK, guidance=replace(guidance, trace="stream"), **scored)  # type: ignore[arg-type]
    assert not rounds_of(await events_of(fake_engine(), request))


async def test_each_prompt_has_its_own_rounds() -> None:
    request = replace(ASK, prompts=(TextPrompt("x"), TextPrompt("y")), n=2)
    events, whole = await both(fake_engine(), request)
    report = last_of(whole).guidance
    assert report is not None
    assert report.tree is not None
    for prompt in (0, 1):
        rounds = rounds_of(events, prompt)
        texts = check_is_the_tree(rounds, report.tree[prompt])
        answers = {i: choices(events)[i].hypothesis.text for i in (2 * prompt, 2 * prompt + 1)}
        check_ends_in_the_answers(rounds, texts, answers)


async def test_merged_and_carried_candidates_are_shown() -> None:
    """Two letters and long odds for the end: many candidates are equal, and some answers end early and stay."""
    guidance = Guidance("cbs", {"positive": 1.0}, 3, 4, 1, trace="stream")
    engine = fake_engine(
        FakeLargeModel(letters("ab", eos=0.3)), {"positive": FakeScorer(lambda text, ended: ended * 9)}
    )
    fates: dict[str, int] = {}
    for seed in range(10):
        request = replace(ASK, guidance=guidance, sampling=SamplingParams(max_tokens=5, seed=seed))
        rounds = rounds_of(await events_of(engine, request))
        for round_, texts in zip(rounds, texts_of(rounds), strict=True):
            merged = [node for node in round_.candidates if node.fate == "merged"]
            others = [(texts[node.id], node.score) for node in round_.candidates if node.fate != "merged"]
            assert all((texts[node.id], node.score) in others for node in merged)
            carried = [node for node in round_.candidates if node.finish_reason and not node.text and node.offset]
            for kind, nodes in (("merged", merged), ("carried", carried)):
                fates[kind] = fates.get(kind, 0) + len(nodes)
    assert fates["merged"] > 10
    assert fates["carried"] > 10


async def test_rounds_end_where_there_is_no_room_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate takes 200 characters and its new ones: three rounds of four new candidates of three have room."""
    monkeypatch.setattr(planning, "MAX_TREE_CHARACTERS", 2 * 3 * 4 * (200 + 3))
    engine = fake_engine(FakeLargeModel(letters("abcdefghijklmnop", eos=0.0)))
    request = replace(ASK, prompts=(TextPrompt("x"), TextPrompt("y")), sampling=SamplingParams(max_tokens=15, seed=1))
    events = await events_of(engine, replace(request, guidance=replace(DEFAULT_GUIDANCE, trace="stream")))
    for prompt in (0, 1):
        *complete, last = rounds_of(events, prompt)
        assert [round_.chunk for round_ in complete] == [1, 2, 3]
        assert not any(round_.truncated for round_ in complete)
        assert (last.chunk, last.truncated, list(last.candidates)) == (4, True, [])
    assert all(len(choice.hypothesis.text) == 15 for choice in choices(events).values())
    report = last_of(events).guidance
    assert report is not None
    assert (report.chunks, report.tree, report.tree_truncated) == (10, None, False)


@pytest.mark.parametrize("thoughts", [False, True])
async def test_a_search_behind_thoughts_or_of_them_has_rounds(thoughts: bool) -> None:
    guidance = replace(DEFAULT_GUIDANCE, thoughts=thoughts)
    request = GenerationRequest("guided", (CHAT,), SamplingParams(seed=1, max_tokens=60), guidance, n=2)
    events, whole = await both(fake_engine(thinking(wild)), request)
    assert [event for event in events[:-1] if not isinstance(event, RoundFinished)] == whole[:-1]
    report, rounds = last_of(whole).guidance, rounds_of(events)
    assert report is not None
    assert report.tree is not None
    texts = check_is_the_tree(rounds, report.tree[0])
    check_costs(rounds, last_of(events))
    answer = choices(events)[0].hypothesis.text
    assert answer in {texts[-1][node.id].rpartition("</think>\n\n")[2] for node in rounds[-1].candidates}
