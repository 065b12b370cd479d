"""Guidance that its method does not use: refused if the request gives it, dropped if the served model does."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.fakes import FakeLargeModel, FakeScorer, letters
from tests.server.conftest import Connect
from w2s_core.config import ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.interfaces import LargeModel
from w2s_core.types import Guidance, Prompt

BODY: dict[str, Any] = {"prompt": "x", "max_tokens": 6, "seed": 1}
SERVED = {
    "plain": None,
    "scored": Guidance("cbs", {"pair": 1.0}, 2, 2, 3, reward_models={"reward": 1.0}, scorers={"own": 1.0}),
    "rejecting": Guidance("best_of_n", {"pair": 1.0}, successors=8, chunk_length=2, early_rejection=0.5),
    "eft": Guidance("eft", {"pair": 1.0}),
}
EFT = {"method": "eft", "pairs": {"pair": 1.0}}
CBS = {"pairs": {"pair": 1.0}, "beam_width": 2, "successors": 2}
REWARD, OWN = {"reward_models": {"reward": 1.0}}, {"scorers": {"own": 1.0}}


class FakeTuner:
    """Steers a model by doing nothing."""

    def __init__(self, large: LargeModel) -> None:
        self._large = large

    def tune(self, _guidance: Guidance, _prompt: Prompt, max_tokens: int, _field: str) -> tuple[LargeModel, int]:
        return self._large, max_tokens


@pytest.fixture
async def client(connect: Connect) -> httpx.AsyncClient:
    large = FakeLargeModel(letters(eos=0))
    engine = Engine(
        {"large": large},
        {name: FakeScorer() for name in ("pair", "reward", "own")},
        {name: ServedModelConfig("large", guidance) for name, guidance in SERVED.items()},
        scorer_keys={"reward": "reward_models", "own": "scorers"},
        tuners={"large": FakeTuner(large)},
    )
    return await connect(engine)  # type: ignore[arg-type]


async def ask(
    client: httpx.AsyncClient, model: str, guidance: dict[str, Any] | None, fields: dict[str, Any] | None = None
) -> httpx.Response:
    body = BODY | {"model": model, "guidance": guidance} | (fields or {})
    return await client.post("/v1/completions", json=body)


@pytest.mark.parametrize(
    ("model", "guidance", "param"),
    [
        ("plain", EFT | REWARD, "guidance.reward_models"),
        ("plain", EFT | OWN, "guidance.scorers"),
        ("scored", {"method": "eft"} | REWARD, "guidance.reward_models"),  # the same that is dropped if it is inherited
        ("scored", {"method": "eft"} | OWN, "guidance.scorers"),
        ("eft", OWN, "guidance.scorers"),
        ("plain", EFT | {"early_rejection": 0.5}, "guidance.early_rejection"),
        ("plain", CBS | {"early_rejection": 0.5}, "guidance.early_rejection"),
        ("scored", {"early_rejection": 0.5}, "guidance.early_rejection"),
        ("rejecting", {"method": "cbs", "early_rejection": 0.5}, "guidance.early_rejection"),
    ],
)
@pytest.mark.parametrize("chat", [False, True])
async def test_what_a_request_gives_in_vain_is_refused(
    client: httpx.AsyncClient, model: str, guidance: dict[str, Any], param: str, chat: bool
) -> None:
    body = {"model": model, "guidance": guidance, "max_tokens": 6}
    messages = [{"role": "user", "content": "Hi"}]
    if chat:
        response = await client.post("/v1/chat/completions", json=body | {"messages": messages})
    else:
        response = await client.post("/v1/completions", json=body | {"prompt": "x"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"].startswith(f"`{param}`: must be ")


@pytest.mark.parametrize(
    ("model", "guidance", "same_as"),
    [
        ("scored", {"method": "eft"}, EFT),
        ("scored", {"method": "eft", "early_rejection": 0, "scorers": {}, "reward_models": None}, EFT),
        ("rejecting", {"method": "cbs", "beam_width": 2, "successors": 2}, CBS | {"chunk_length": 2}),
        ("rejecting", {"method": "eft"}, EFT),
        ("rejecting", {"method": "none"}, {"method": "none"}),
    ],
)
async def test_what_the_served_model_gives_in_vain_is_dropped(
    client: httpx.AsyncClient, model: str, guidance: dict[str, Any], same_as: dict[str, Any]
) -> None:
    answers = [await ask(client, name, each) for name, each in ((model, guidance), ("plain", same_as))]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    found, expected = ([answer.json().get(key) for key in ("choices", "usage", "guidance")] for answer in answers)
    for reports in (found, expected):
        if reports[-1]:
            reports[-1] = {key: reports[-1][key] for key in ("method", "sampled_tokens", "scored_tokens")}
    assert found == expected


@pytest.mark.parametrize(
    ("guidance", "fields"),
    [
        ({"method": "eft"}, {"best_of": 4}),  # best-of-n of candidates that are drawn by EFT
        ({"method": "eft"}, {"max_tokens": 0, "echo": True}),  # scores a text
        ({"method": "eft"} | REWARD | OWN, {"best_of": 4}),
        ({"method": "eft"} | REWARD | OWN, {"max_tokens": 0, "echo": True}),
    ],
)
async def test_where_the_scorers_are_used_they_are_kept(
    client: httpx.AsyncClient, guidance: dict[str, Any], fields: dict[str, Any]
) -> None:
    response = await ask(client, "scored", guidance, fields)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["guidance"]["scores"].keys() == {"pair", "reward", "own"}


async def test_best_of_uses_early_rejection(client: httpx.AsyncClient) -> None:
    costs = []
    for fraction in (0, 0.5):
        response = await ask(client, "plain", CBS | {"chunk_length": 2, "early_rejection": fraction}, {"best_of": 8})
        costs.append(response.raise_for_status().json()["guidance"]["sampled_tokens"])
    assert costs[1] < costs[0]


@pytest.mark.parametrize("model", SERVED)
async def test_served_models_are_asked_as_they_are(client: httpx.AsyncClient, model: str) -> None:
    assert (await ask(client, model, None)).status_code == 200
    assert (await ask(client, model, {})).status_code == (400 if model == "plain" else 200)
