"""A score is a finite number, or an error that names the pair: others would rank at random and are no JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.engine.test_engine import ASK, events_of
from tests.fakes import DEFAULT_GUIDANCE, FakeScorer, FakeScoring, fake_engine
from w2s_core.errors import RequestError, UpstreamError, WorkerError
from w2s_core.guidance import MAX_WEIGHT
from w2s_core.scorers.combined import CombinedScoring
from w2s_core.scorers.likelihood import LikelihoodScorer
from w2s_core.types import MIN_LOGPROB, Hypothesis, ProviderUsage

NOT_FINITE = (math.nan, math.inf, -math.inf)


class RemoteScoring(FakeScoring):
    provider_usage = ProviderUsage(calls=1)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(("session", "error"), [(FakeScoring, WorkerError), (RemoteScoring, UpstreamError)])
@pytest.mark.parametrize("weight", [1.0, -1.0, 0.0])
async def test_a_score_that_is_no_number_names_the_pair_at_fault(
    value: float, session: type[FakeScoring], error: type[Exception], weight: float
) -> None:
    sessions = {"good": FakeScoring(FakeScorer()), "bad": session(FakeScorer(lambda text, ended: value))}
    scoring = CombinedScoring(sessions, {"good": 1.0, "bad": weight})
    with pytest.raises(error, match="`bad`") as caught:
        await scoring.score([Hypothesis(text="a")])
    assert "good" not in str(caught.value)
    assert type(caught.value) is error


async def test_pairs_whose_sum_overflows_are_all_named() -> None:
    sessions = {name: FakeScoring(FakeScorer(lambda text, ended: 1e308)) for name in ("one", "two")}
    with pytest.raises(WorkerError, match="`one`, `two`"):
        await CombinedScoring(sessions, {"one": 1.0, "two": 1.0}).score([Hypothesis()])


@pytest.mark.parametrize("weight", [*NOT_FINITE, 1e308, -1e308, 1.01 * MAX_WEIGHT])
async def test_a_weight_that_would_overflow_is_refused(weight: float) -> None:
    with pytest.raises(RequestError, match="at most 1,000,000") as caught:
        await events_of(fake_engine(), replace(ASK, guidance=replace(DEFAULT_GUIDANCE, pairs={"positive": weight})))
    assert caught.value.param == "guidance.pairs.positive"
    largest = replace(DEFAULT_GUIDANCE, pairs={"positive": MAX_WEIGHT, "polite": -MAX_WEIGHT})
    assert await events_of(fake_engine(), replace(ASK, guidance=largest))


@pytest.mark.parametrize("logprobs", [(-math.inf,), (-1.0, -math.inf)])
async def test_an_impossible_token_is_unlikely_and_no_more(logprobs: Sequence[float]) -> None:
    tokens = tuple(range(len(logprobs)))
    [score] = await LikelihoodScorer().score([Hypothesis(tokens, logprobs=tuple(logprobs))])
    assert score.total == (sum(logprobs[:-1]) + MIN_LOGPROB) / len(logprobs)
