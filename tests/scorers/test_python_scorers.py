"""Scorers in Python: how one is found and made, what it sees, what it costs the server when it fails."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import FakeLargeModel, FakeScorer, answer, letters
from w2s_core import AnswerScorer
from w2s_core.config import PythonScorerConfig, ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.errors import ConfigurationError, RequestError, WorkerError
from w2s_core.guidance import Guidance
from w2s_core.scorers.python_scorer import PythonScorer, python_scorer
from w2s_core.types import ChatPrompt, GenerationRequest, Hypothesis, Prompt, SamplingParams, TextPrompt

MODULE = """
from w2s_core import AnswerScorer

def counting(letter="a", factor=1.0):
    return AnswerScorer(lambda prompt, answers: [factor * y.count(letter) for y in answers])

def raising(): raise OSError("no such lexicon")
def nothing(): return None
number = 3
class Nested:
    factory = staticmethod(counting)
"""
SEARCH = Guidance("cbs", scorers={"own": 1.0}, beam_width=2, successors=3, chunk_length=4)
ASK = GenerationRequest("plain", (TextPrompt("x"),), SamplingParams(max_tokens=24, seed=1), SEARCH)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A file in the working directory, which is not on the path of modules."""
    (tmp_path / "own_scorers.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "broken_scorers.py").write_text("import no_such_thing", encoding="utf-8")
    (tmp_path / "wrong_scorers.py").write_text("1 / 0", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "own_scorers"
    sys.modules.pop("own_scorers", None)


def engine_of(scorer: Any, **pairs: FakeScorer) -> Engine:
    large = FakeLargeModel(letters("ab ", eos=0.05))
    served = {"plain": ServedModelConfig("large")}
    return Engine({"large": large}, {"own": scorer, **pairs}, served, scorer_keys={"own": "scorers"})


async def score(scorer: Any, prompt: Prompt, *texts: str) -> list[float]:
    async with scorer.open(prompt) as session:
        return [s.total for s in await session.score([Hypothesis(text=text) for text in texts])]


@pytest.mark.parametrize("reference", ["counting", "Nested.factory"])
async def test_a_factory_is_found_and_gets_its_options(module: str, reference: str) -> None:
    scorer = python_scorer("own", PythonScorerConfig(f"{module}:{reference}", {"letter": "b", "factor": 2.0}))
    assert await score(scorer, TextPrompt("x"), "abb", "") == [4.0, 0.0]


@pytest.mark.parametrize(
    ("reference", "options", "message"),
    [
        ("own_scorers", {}, "scorers.own.python: `own_scorers` must be like package.module:factory"),
        (":counting", {}, "must be like package.module:factory"),
        ("no_such.module:f", {}, "scorers.own.python: there is no module `no_such`."),
        ("broken_scorers:f", {}, "there is no module `no_such_thing`. It is imported by `broken_scorers`."),
        ("wrong_scorers:f", {}, "`wrong_scorers` cannot be imported: ZeroDivisionError"),
        ("own_scorers:missing", {}, "has no function or class `missing`"),
        ("own_scorers:number", {}, "has no function or class `number`"),
        ("own_scorers:raising", {}, "scorers.own: `own_scorers:raising` raised OSError: no such lexicon"),
        ("own_scorers:counting", {"leter": "b"}, "raised TypeError: .*leter"),
        ("own_scorers:nothing", {}, "returned NoneType, which is no scorer"),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_cannot_be_a_scorer_is_told_by_its_key(reference: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        python_scorer("own", PythonScorerConfig(reference, options))


async def test_a_function_sees_the_prompt_as_text_and_each_answer_once() -> None:
    calls: list[tuple[str, list[str]]] = []

    def function(prompt: str, answers: Sequence[str]) -> list[float]:
        calls.append((prompt, list(answers)))
        return [float(len(text)) for text in answers]

    chat = ChatPrompt(
        ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Q"})
    )
    async with AnswerScorer(function).open(chat) as scoring:
        for texts in (["a", "bb", "a"], ["bb", "bbc"], ["a"]):
            found = await scoring.score([Hypothesis(text=text) for text in texts])
            assert [s.total for s in found] == [len(text) for text in texts]
    assert calls == [("Q", ["a", "bb"]), ("Q", ["bbc"]), ("Q", ["a"])], "what has been pruned is forgotten"


async def test_an_async_function() -> None:
    async def function(_prompt: str, answers: Sequence[str]) -> list[float]:
        await asyncio.sleep(0)
        return [1.0] * len(answers)

    assert await score(AnswerScorer(function), TextPrompt("x"), "a", "b") == [1.0, 1.0]


async def test_a_slow_function_holds_nothing_up() -> None:
    done = threading.Event()

    def function(_prompt: str, answers: Sequence[str]) -> list[float]:
        assert done.wait(60)
        return [0.0] * len(answers)

    scoring = asyncio.create_task(score(AnswerScorer(function), TextPrompt("x"), "a"))
    await asyncio.sleep(0)
    done.set()  # the loop is free to come here
    assert await scoring == [0.0]


async def test_it_guides_alone_and_beside_pairs() -> None:
    likes_a = PythonScorer("own", AnswerScorer(lambda _, answers: [float(y.count("a")) for y in answers]))
    [alone] = await answer(engine_of(likes_a), ASK)
    [plain] = await answer(engine_of(likes_a), replace(ASK, guidance=None))
    assert alone.score == alone.scores["own"] == alone.text.count("a") > plain.text.count("a")
    likes_b = FakeScorer(lambda text, ended: float(text.count("b")))
    guidance = replace(SEARCH, scorers={"own": 0.5}, pairs={"pair": 2.0})
    [both] = await answer(engine_of(likes_a, pair=likes_b), replace(ASK, guidance=guidance))
    assert both.score == 0.5 * both.text.count("a") + 2 * both.text.count("b")
    assert list(both.scores) == ["pair", "own"]
    best = replace(ASK, guidance=replace(SEARCH, method="best_of_n"))
    assert (await answer(engine_of(likes_a), best))[0].score >= plain.text.count("a") / 4


class Failing:
    """Raises where it is told to."""

    scored_tokens = 0

    def __init__(self, place: str, error: Exception) -> None:
        self.place = place
        self.error = error

    def fail(self, place: str) -> None:
        if place == self.place:
            raise self.error

    def check(self, _prompt: Prompt, max_tokens: int) -> int:
        self.fail("check")
        return max_tokens

    @asynccontextmanager
    async def open(self, _prompt: Prompt) -> AsyncIterator[Failing]:
        self.fail("open")
        yield self

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Any]:
        self.fail("score")
        return [None] * (len(candidates) + 1)


@pytest.mark.parametrize("place", ["check", "open", "score", "the number of scores"])
async def test_a_scorer_that_fails_fails_its_request_and_is_named(place: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = engine_of(PythonScorer("own", Failing(place, KeyError("secret"))))  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR), pytest.raises(WorkerError, match=r"The scorer `own` failed: \w+\.") as caught:
        await answer(engine, ASK)
    assert "secret" not in str(caught.value)
    assert "the scorer `own` failed" in caplog.text
    assert await answer(engine, replace(ASK, guidance=None)), "others are served"


async def test_a_scorer_may_refuse_a_request() -> None:
    refusal = RequestError("Not this prompt.", "prompt")
    with pytest.raises(RequestError, match="Not this prompt"):
        await answer(engine_of(PythonScorer("own", Failing("check", refusal))), ASK)  # type: ignore[arg-type]


async def test_numbers_that_are_not_finite_are_refused() -> None:
    scorer = PythonScorer("own", AnswerScorer(lambda _, answers: [float("nan")] * len(answers)))
    with pytest.raises(WorkerError, match="`own` is not a finite number"):
        await answer(engine_of(scorer), ASK)


@pytest.mark.parametrize(
    ("guidance", "param", "message"),
    [
        (Guidance("cbs", {"own": 1.0}), "guidance.pairs.own", "There is no pair `own`. Configured pairs: none."),
        (Guidance("cbs", scorers={"x": 1.0}), "guidance.scorers.x", "no scorer `x`. Configured scorers: own."),
        (Guidance("cbs", reward_models={"own": 1.0}), "guidance.reward_models.own", "no reward model `own`"),
        (Guidance("cbs", scorers={"own": 1e7}), "guidance.scorers.own", "must be at most"),
        (Guidance("eft", scorers={"own": 1.0}), "guidance.pairs", "needs at least one pair"),
        (Guidance("cbs"), "guidance.pairs", "needs at least one"),
    ],
)
async def test_names_belong_to_their_key(guidance: Guidance, param: str, message: str) -> None:
    engine = engine_of(PythonScorer("own", AnswerScorer(lambda _, answers: [0.0] * len(answers))))
    with pytest.raises(RequestError, match=message) as caught:
        await answer(engine, replace(ASK, guidance=guidance))
    assert caught.value.param == param
