"""A function of texts as a scorer: what it is called with, where it runs, and what it may not return."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from w2s_core import AnswerScorer
from w2s_core.errors import ScorerError
from w2s_core.types import ChatPrompt, Hypothesis, Prompt, TextPrompt

PROMPT = TextPrompt("x")
CHAT = ChatPrompt(
    (
        {"role": "user", "content": "First"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": [{"type": "text", "text": "Sec"}, {"type": "text", "text": "ond"}]},
    )
)


def lengths(prompt: object, answers: list[str]) -> list[int]:
    return [len(answer) for answer in answers]


async def scores(scorer: AnswerScorer, *texts: str, prompt: Prompt = PROMPT) -> list[float]:
    async with scorer.open(prompt) as scoring:
        return [score.total for score in await scoring.score([Hypothesis(text=text) for text in texts])]


async def lengths_later(prompt: object, answers: list[str]) -> list[int]:
    await asyncio.sleep(0)
    return lengths(prompt, answers)


class Lengths:
    """Something that can be called, and has no name."""

    async def __call__(self, prompt: object, answers: list[str]) -> list[int]:
        return await lengths_later(prompt, answers)


class Wrapped:
    """A plain function by its looks, which returns what another one's coroutine will."""

    def __init__(self, score: Any) -> None:
        self.score = score

    def __call__(self, prompt: object, answers: list[str]) -> Any:
        return self.score(prompt, answers)


def lengths_of(prompt: object, answers: list[str]) -> Iterator[int]:
    yield from lengths(prompt, answers)


@pytest.mark.parametrize(
    "score", [lengths, lengths_later, Lengths(), partial(lengths), lengths_of, Wrapped(lengths_later)]
)
async def test_every_kind_of_function(score: Any) -> None:
    assert await scores(AnswerScorer(score), "ab", "", "abcd", "ab") == [2.0, 0.0, 4.0, 2.0]


@pytest.mark.parametrize(
    ("prompt", "text"), [(TextPrompt("Once"), "Once"), (CHAT, "Second"), (ChatPrompt(CHAT.messages[1:2]), "")]
)
async def test_it_is_given_the_prompts_text_or_the_whole_prompt(prompt: Prompt, text: str) -> None:
    seen: list[object] = []

    def score(prompt: object, answers: list[str]) -> list[float]:
        seen.append(prompt)
        return [0.0] * len(answers)

    await scores(AnswerScorer(score), "a", prompt=prompt)
    await scores(AnswerScorer(score, whole_prompt=True), "a", prompt=prompt)
    assert seen == [text, prompt]


async def test_an_answer_is_scored_once_and_forgotten_when_it_is_pruned() -> None:
    calls: list[list[str]] = []

    def score(prompt: str, answers: list[str]) -> list[int]:
        calls.append(list(answers))
        answers.clear()  # its list is its own
        return lengths(prompt, calls[-1])

    async with AnswerScorer(score).open(TextPrompt("x")) as scoring:
        for texts in (["a", "bb", "a"], ["bb", "ccc"], ["ccc"], ["a", "ccc"]):
            candidates = [Hypothesis(text=text) for text in texts]
            await scoring.prefetch(candidates)
            assert [s.total for s in await scoring.score(candidates)] == [len(text) for text in texts]
    assert calls == [["a", "bb"], ["ccc"], ["a"]]


async def test_a_plain_function_does_not_hold_up_the_event_loop() -> None:
    """Both calls return only after the event loop has gone on, and both run at the same time."""
    running, go_on = threading.Semaphore(0), threading.Event()

    def score(prompt: str, answers: list[str]) -> list[int]:
        running.release()
        assert go_on.wait(60)
        return lengths(prompt, answers)

    scorer = AnswerScorer(score)
    tasks = [asyncio.create_task(scores(scorer, "ab")) for _ in range(2)]
    for _ in tasks:
        assert await asyncio.to_thread(running.acquire, timeout=60)
    go_on.set()
    assert await asyncio.gather(*tasks) == [[2.0], [2.0]]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "`score` returned 1 scores for 2 answers"),
        ([1.0, 2.0, 3.0], "`score` returned 3 scores for 2 answers"),
        ([1.0, math.nan], "`score` returned nan as a score"),
        ([math.inf, 1.0], "`score` returned inf as a score"),
        ([None, 1.0], "`score` returned a NoneType where a score belongs"),
        ("95", "`score` returned a str where a score belongs"),
        ({"1": 2.0, "3": 4.0}, "`score` returned a str where a score belongs"),
        (["the answer itself", 1.0], "`score` returned a str where a score belongs"),
    ],
)
async def test_what_is_no_score_is_an_error_that_quotes_no_answer(returned: Any, message: str) -> None:
    def score(prompt: str, answers: list[str]) -> Any:
        return returned

    with pytest.raises(ScorerError) as caught:
        await scores(AnswerScorer(score), "a", "b")
    assert message in str(caught.value)
    assert "the answer" not in str(caught.value)


async def test_an_iterator_that_is_empty_does_not_wait_for_ever() -> None:
    def score(prompt: str, answers: list[str]) -> Any:
        return next(iter([]))

    with pytest.raises(RuntimeError, match="StopIteration"):
        async with asyncio.timeout(60):
            await scores(AnswerScorer(score), "a")


async def test_calls_that_hang_take_nothing_from_others() -> None:
    """Each has a thread of its own, which does not keep the process from its end either."""
    released = threading.Event()

    def score(_prompt: str, answers: list[str]) -> list[float]:
        if answers == ["hang"]:
            assert released.wait(60)
        return [0.0] * len(answers)

    scorer = AnswerScorer(score)
    hanging = [asyncio.create_task(scorer.values("", ["hang"])) for _ in range(40)]
    try:
        assert await asyncio.wait_for(scorer.values("", ["good"]), 30) == [0.0]
        threads = [thread for thread in threading.enumerate() if thread.name == "score"]
        assert len(threads) >= 40  # that of the good call may be about to end
        assert all(thread.daemon for thread in threads)
    finally:
        released.set()
    assert await asyncio.gather(*hanging) == [[0.0]] * 40


async def test_a_scorer_that_asks_to_exit_fails_its_request_alone() -> None:
    def score(_prompt: str, _answers: list[str]) -> list[float]:
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match="SystemExit"):
        await AnswerScorer(score).values("", ["a"])


async def test_a_coroutine_that_comes_after_its_request_has_left_is_closed() -> None:
    """Python warns of one that is never awaited, and a warning fails a test."""
    called, released = threading.Event(), threading.Event()
    coroutines: list[Any] = []

    class Late:
        def __call__(self, prompt: object, answers: list[str]) -> Any:
            called.set()
            assert released.wait(60)
            coroutines.append(lengths_later(prompt, answers))
            return coroutines[0]

    request = asyncio.create_task(scores(AnswerScorer(Late()), "ab"))
    assert await asyncio.to_thread(called.wait, 60)
    request.cancel()
    await asyncio.wait([request])
    [thread] = [thread for thread in threading.enumerate() if thread.name == "Late"]
    released.set()
    await asyncio.to_thread(thread.join, 60)  # what the thread has told the event loop comes before its end
    assert [inspect.getcoroutinestate(coroutine) for coroutine in coroutines] == [inspect.CORO_CLOSED]
