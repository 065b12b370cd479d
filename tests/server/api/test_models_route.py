"""`/v1/models` tells the guidance of each served model, and what a request may give weights to."""

from __future__ import annotations

from server.api.schemas.guidance import GuidanceOptions
from tests.fakes import FakeScorer, fake_engine
from tests.server.conftest import Connect
from tests.server.fake_engine import BEST_OF, STEERED, FakeEngine
from w2s_core.config import ServedModelConfig
from w2s_core.engine.engine import Engine


async def test_a_request_with_the_guidance_that_is_told_is_searched_alike(connect: Connect) -> None:
    engine = FakeEngine()
    client = await connect(engine)
    listed = {model["id"]: model for model in (await client.get("/v1/models")).json()["data"]}
    assert listed["plain"]["default_guidance"] is None
    for name, guidance in {"steered": STEERED, "best": BEST_OF}.items():
        told = listed[name]["default_guidance"]
        assert told.keys() == GuidanceOptions.model_fields.keys() - {"prompt"}
        response = await client.post("/v1/completions", json={"model": "plain", "prompt": "x", "guidance": told})
        assert response.status_code == 200
        assert engine.requests[-1].guidance == guidance


async def test_scorers_are_told_under_their_keys(connect: Connect) -> None:
    keys = {"safe": "reward_models", "own": "scorers"}
    scorers = {name: FakeScorer() for name in ("positive", "safe", "own")}
    large = fake_engine()._planner.large_models
    client = await connect(Engine(large, scorers, {"one": ServedModelConfig("large")}, scorer_keys=keys))
    told = (await client.get("/v1/models/one")).json()["available_scorers"]
    assert told == {"pairs": ["positive"], "reward_models": ["safe"], "scorers": ["own"]}
