"""Scorers in Python over HTTP: they guide beside pairs and alone, and one that fails fails its own requests only."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import pytest

from tests.fakes import FakeLargeModel, FakeScorer, letters
from tests.server.conftest import Connect
from w2s_core import AnswerScorer
from w2s_core.config import ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.errors import RequestError
from w2s_core.interfaces import Scorer
from w2s_core.scorers.answer_scorer import AnswerScoring
from w2s_core.scorers.python_scorer import PythonScorer
from w2s_core.types import Guidance, Hypothesis, Prompt, Score

SEARCH = {"beam_width": 3, "successors": 3, "chunk_length": 4, "trace": True}
BODY: dict[str, Any] = {"model": "plain", "prompt": "x", "max_tokens": 12, "seed": 1, "temperature": 1.0}


def likes_spaces(prompt: str, answers: list[str]) -> list[int]:
    return [answer.count(" ") for answer in answers]


def raises(prompt: str, answers: list[str]) -> list[int]:
    raise ValueError("the password is swordfish")


def takes_too_long(prompt: str, answers: list[str]) -> list[int]:
    raise TimeoutError


class Refuses(AnswerScorer):
    """A scorer whose `check` refuses some prompts."""

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        raise RequestError("I score no such thing.", "prompt")


class ClosesBadly(AnswerScorer):
    """A scorer whose sessions raise when they close."""

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[AnswerScoring]:
        async with super().open(prompt) as scoring:
            yield scoring
        raise OSError


class Bare:
    """A scorer that implements no more of the protocol than what scores."""

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        return max_tokens

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[Bare]:
        yield self

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        pass

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        return [Score(0.0) for _ in candidates]


SCORERS: dict[str, Scorer] = {
    "spaces": AnswerScorer(likes_spaces),
    "raises": AnswerScorer(raises),
    "few": AnswerScorer(lambda prompt, answers: [1.0]),
    "slow": AnswerScorer(takes_too_long),
    "refuses": Refuses(likes_spaces),
    "closes": ClosesBadly(likes_spaces),
    "bare": cast(Scorer, Bare()),
}


@pytest.fixture
async def client(connect: Connect) -> httpx.AsyncClient:
    scorers = {name: PythonScorer(name, scorer) for name, scorer in SCORERS.items()}
    served = {
        "plain": ServedModelConfig("large"),
        "spacious": ServedModelConfig("large", Guidance(scorers={"spaces": 1.0})),
    }
    large = FakeLargeModel(letters(eos=0.02))
    engine = Engine(
        {"large": large}, {"a": FakeScorer(), **scorers}, served, scorer_keys=dict.fromkeys(SCORERS, "scorers")
    )
    return await connect(engine)  # type: ignore[arg-type]


async def ask(client: httpx.AsyncClient, guidance: dict[str, Any] | None = None, **fields: Any) -> httpx.Response:
    body = BODY | fields | ({} if guidance is None else {"guidance": guidance})
    return await client.post("/v1/completions", json=body)


async def test_its_weighted_score_is_added_to_a_pairs(client: httpx.AsyncClient) -> None:
    guidance = SEARCH | {"pairs": {"a": 2.0}, "scorers": {"spaces": 0.5}}
    response = (await ask(client, guidance)).raise_for_status().json()
    [choice] = response["choices"]
    text, scored = choice["text"], choice["guidance"]
    expected = {"a": text.count("a") - 0.5 * text.count("b"), "spaces": float(text.count(" "))}
    assert scored["scores"] == expected
    assert scored["score"] == pytest.approx(2.0 * expected["a"] + 0.5 * expected["spaces"])
    for candidate in (candidate for chunk in response["guidance"]["tree"][0] for candidate in chunk):
        assert candidate["scores"]["spaces"] == candidate["text"].count(" ")
    metrics = (await client.get("/metrics")).text
    assert 'w2s_scored_tokens_total{pair="spaces"} 0.0' in metrics
    assert response["guidance"]["scored_tokens"] > 0


@pytest.mark.parametrize("method", ["cbs", "best_of_n"])
async def test_it_guides_without_a_pair(client: httpx.AsyncClient, method: str) -> None:
    response = (await ask(client, SEARCH | {"method": method, "scorers": {"spaces": 1.0}})).raise_for_status().json()
    [choice] = response["choices"]
    last = response["guidance"]["tree"][0][-1]
    best = max(candidate["text"].count(" ") for candidate in last)
    assert choice["text"].count(" ") == best == choice["guidance"]["score"]
    assert best > min(candidate["text"].count(" ") for candidate in last)
    assert response["guidance"]["scored_tokens"] == 0
    assert "w2s_score_margin_nats_count 0.0" not in (await client.get("/metrics")).text


async def test_a_negative_weight_steers_away(client: httpx.AsyncClient) -> None:
    response = (await ask(client, SEARCH | {"scorers": {"spaces": -1.0}})).raise_for_status().json()
    spaces = [candidate["text"].count(" ") for candidate in response["guidance"]["tree"][0][-1]]
    assert response["choices"][0]["text"].count(" ") == min(spaces) < max(spaces)


async def test_best_of_is_ranked_by_the_served_models_scorer(client: httpx.AsyncClient) -> None:
    fields: dict[str, Any] = {"model": "spacious", "best_of": 6, "n": 6, "max_tokens": 8}
    choices = (await ask(client, **fields)).raise_for_status().json()["choices"]
    spaces = [choice["text"].count(" ") for choice in choices]
    assert spaces == sorted(spaces, reverse=True)
    assert len(set(spaces)) > 1


async def test_a_fixed_text_is_scored(client: httpx.AsyncClient) -> None:
    guidance = {"scorers": {"spaces": 1.0}, "prompt": "a b c"}
    response = await ask(client, guidance, prompt="a b c d e", max_tokens=0, echo=True)
    [choice] = response.raise_for_status().json()["choices"]
    assert choice["guidance"] == {"score": 2.0, "scores": {"spaces": 2.0}}


@pytest.mark.parametrize(
    ("guidance", "param"),
    [
        ({"scorers": {"a": 1.0}}, "guidance.scorers.a"),
        ({"pairs": {"spaces": 1.0}}, "guidance.pairs.spaces"),
        ({"scorers": {"spaces": 1e9}}, "guidance.scorers.spaces"),
        ({"scorers": {}}, "guidance.pairs"),
        ({"method": "eft", "scorers": {"spaces": 1.0}}, "guidance.pairs"),
        ({"scorers": {"refuses": 1.0}}, "prompt"),
    ],
)
async def test_what_is_refused_names_its_field(client: httpx.AsyncClient, guidance: Any, param: str) -> None:
    response = await ask(client, guidance)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def sent(response: httpx.Response) -> list[dict[str, Any]]:
    """What a stream has sent."""
    return [json.loads(event.removeprefix("data: ")) for event in response.text.split("\n\n")[:-2]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "The scorer `raises` failed. (request id "),
        ("slow", "The scorer `slow` failed. (request id "),
        ("closes", "The scorer `closes` failed. (request id "),
        ("bare", "The scorer `bare` failed. (request id "),
        ("few", "The scorer `few` failed: `<lambda>` returned 1 scores for "),
    ],
)
async def test_one_that_fails_is_named_and_what_it_raised_is_logged_only(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, name: str, message: str, stream: bool
) -> None:
    with caplog.at_level(logging.ERROR):
        response = await ask(client, SEARCH | {"scorers": {name: 1.0, "spaces": 1.0}}, stream=stream)
    if stream and name == "closes":  # after the answer's text was sent
        [error] = [chunk["error"] for chunk in sent(response) if "error" in chunk]
    else:
        assert response.status_code == 500
        error = response.json()["error"]
    assert (error["type"], error["code"]) == ("internal_error", "internal_error")
    assert error["message"].startswith(message)
    assert "swordfish" not in response.text
    assert "Traceback" not in response.text
    assert ("ValueError: the password is swordfish" in caplog.text) == (name == "raises")
    assert (await ask(client, {"scorers": {"spaces": 1.0}})).status_code == 200
    assert "w2s_requests_running 0.0" in (await client.get("/metrics")).text
