"""A served model's sampling defaults: a request's own values win, one by one, and `/v1/models` tells what holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from server.settings.served_models import SamplingDefaults
from tests.server.api.test_requests import BOTH, Asker
from tests.server.conftest import Connect
from tests.server.fake_engine import FakeEngine, FakeServedModel
from w2s_core.types import SamplingParams

SAMPLING = SamplingParams(
    max_tokens=99,
    temperature=0.3,
    top_p=0.9,
    top_k=40,
    min_p=0.1,
    stop=("###",),
    seed=5,
    presence_penalty=0.5,
    frequency_penalty=-0.5,
    repetition_penalty=1.2,
)
OWN: dict[str, tuple[Any, Any]] = {  # what a request gives, and what the engine gets
    "temperature": (0, 0),
    "top_p": (1, 1),
    "top_k": (-1, 0),
    "min_p": (0, 0),
    "stop": ([], ()),
    "seed": (0, 0),
    "presence_penalty": (0, 0),
    "frequency_penalty": (0, 0),
    "repetition_penalty": (1, 1),
}


@pytest.fixture
async def ask(connect: Connect) -> Asker:
    engine = FakeEngine(
        served_models={"tuned": FakeServedModel("tuned", sampling=SAMPLING), "bare": FakeServedModel("bare")}
    )
    return Asker(await connect(engine), engine)


@BOTH
async def test_what_a_request_does_not_give_is_the_served_models(ask: Asker, endpoint: str) -> None:
    request = await ask.asked(endpoint, model="tuned")
    assert request.sampling == replace(SAMPLING, max_tokens=None)
    assert request.default_max_tokens == 99, "at most, and fewer where fewer fit: a default is not a demand"


@BOTH
async def test_null_is_not_given(ask: Asker, endpoint: str) -> None:
    assert await ask.asked(endpoint, model="tuned", **dict.fromkeys([*OWN, "max_tokens"])) == await ask.asked(
        endpoint, model="tuned"
    )


@BOTH
@pytest.mark.parametrize("field", OWN)
async def test_a_requests_own_value_wins_and_leaves_the_others(ask: Asker, endpoint: str, field: str) -> None:
    given, becomes = OWN[field]
    request = await ask.asked(endpoint, model="tuned", **{field: given})
    assert request.sampling == replace(SAMPLING, max_tokens=None, **{field: becomes})


@pytest.mark.parametrize(
    ("endpoint", "field"), [("completions", "max_tokens"), ("chat", "max_tokens"), ("chat", "max_completion_tokens")]
)
async def test_a_requests_own_max_tokens_wins(ask: Asker, endpoint: str, field: str) -> None:
    assert (await ask.asked(endpoint, model="tuned", **{field: 500})).sampling.max_tokens == 500


@pytest.mark.parametrize(("endpoint", "limit"), [("completions", 16), ("chat", None)])
async def test_without_any_default_openais_hold(ask: Asker, endpoint: str, limit: int | None) -> None:
    request = await ask.asked(endpoint, model="bare")
    assert (request.sampling, request.default_max_tokens) == (SamplingParams(), limit)


async def test_the_model_tells_what_holds(ask: Asker) -> None:
    told = (await ask.client.get("/v1/models/tuned")).json()["default_sampling"]
    assert told == {
        "temperature": 0.3,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "max_tokens": 99,
        "stop": ["###"],
        "seed": 5,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.2,
    }
    listed = (await ask.client.get("/v1/models")).json()["data"]
    assert [model["default_sampling"] for model in listed] == [
        told,
        {
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "max_tokens": None,
            "stop": [],
            "seed": None,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
        },
    ]


async def test_it_tells_of_every_default_that_can_be_configured(ask: Asker) -> None:
    told = (await ask.client.get("/v1/models/bare")).json()["default_sampling"]
    assert told.keys() == SamplingDefaults.model_fields.keys()


@BOTH
async def test_a_request_made_of_what_the_model_tells_is_answered_alike(ask: Asker, endpoint: str) -> None:
    told = (await ask.client.get("/v1/models/tuned")).json()["default_sampling"]
    request = await ask.asked(endpoint, model="tuned", **told)
    assert replace(request.sampling, max_tokens=None) == (await ask.asked(endpoint, model="tuned")).sampling
