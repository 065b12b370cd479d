"""Reward models over HTTP, behind a real server and worker: choices, trace, streams, metrics and every refusal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from server.app import create_app
from server.engine_host import EngineHost
from tests.server.conftest import uvicorn_server
from tests.telemetry.test_metrics import values
from tests.worker.reward_models import Oracle, reward_config, reward_folders
from w2s_core.build.engine import build_engine
from w2s_core.engine.engine import Engine
from w2s_core.types import Hypothesis

pytestmark = pytest.mark.asyncio(loop_scope="session")

BODY: dict[str, Any] = {"model": "rewarded", "prompt": "Once upon a time", "max_tokens": 16, "seed": 7}
BOTH = {"pairs": {"same": 0.5}, "reward_models": {"helpful": 1.0, "good": -2.0}}


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return reward_folders(tmp_path_factory.mktemp("classifiers"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(
    folders: dict[str, Path], classifiers: dict[str, Path]
) -> AsyncIterator[tuple[Engine, httpx.AsyncClient]]:
    ready: asyncio.Future[Engine] = asyncio.get_running_loop().create_future()
    config = reward_config(folders, classifiers)
    host = EngineHost(lambda: build_engine(config), ready.set_result, ready.set_exception)
    async with uvicorn_server(create_app(host)) as (url, _), httpx.AsyncClient(base_url=url, timeout=120) as client:
        yield await ready, client


@pytest.fixture
def client(served: tuple[Engine, httpx.AsyncClient]) -> httpx.AsyncClient:
    return served[1]


async def post(client: httpx.AsyncClient, path: str = "/v1/completions", **changes: Any) -> dict[str, Any]:
    response = await client.post(path, json=BODY | changes)
    assert response.status_code == 200, response.text
    answered: dict[str, Any] = response.json()
    return answered


@pytest.mark.parametrize("method", ["cbs", "best_of_n"])
async def test_a_choice_has_the_reward_of_its_text(
    client: httpx.AsyncClient, classifiers: dict[str, Path], method: str
) -> None:
    ascii_only = list(range(94))  # text and tokens are then the same
    answered = await post(client, allowed_token_ids=ascii_only, ignore_eos=True, guidance={**BOTH, "method": method})
    [choice] = answered["choices"]
    scores = choice["guidance"]["scores"]
    assert scores.keys() == {"same", "helpful", "good"}
    y = Hypothesis(text=choice["text"])
    helpful = Oracle(classifiers["llama"], shares_tokens=False)
    good = Oracle(classifiers["gpt2"], label=2, template="Q: {prompt}", shares_tokens=False)
    assert scores["helpful"] == pytest.approx(helpful.reward(BODY["prompt"], y), abs=1e-3)
    assert scores["good"] == pytest.approx(good.reward(BODY["prompt"], y), abs=1e-3)
    total = 0.5 * scores["same"] + scores["helpful"] - 2 * scores["good"]
    assert choice["guidance"]["score"] == pytest.approx(total, abs=1e-6)
    assert answered["guidance"]["method"] == method


async def test_the_trace_has_every_candidates_rewards_and_the_best_are_kept(client: httpx.AsyncClient) -> None:
    answered = await post(client, guidance={**BOTH, "trace": True})
    [tree] = answered["guidance"]["tree"]
    for round_ in tree:
        assert all(y["scores"].keys() == {"same", "helpful", "good"} for y in round_)
        kept = [y["score"] for y in round_ if y["kept"]]
        assert len(kept) <= 3
        assert min(kept) >= max((y["score"] for y in round_ if not y["kept"]), default=min(kept))


async def test_a_stream_is_the_whole_answer(client: httpx.AsyncClient) -> None:
    [whole] = (await post(client))["choices"]
    text, guidance = "", None
    async with client.stream("POST", "/v1/completions", json=BODY | {"stream": True}) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["text"]
                    guidance = choice.get("guidance") or guidance
    assert (text, guidance) == (whole["text"], whole["guidance"])


async def test_a_chat_is_guided_by_a_reward_model(client: httpx.AsyncClient) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "prompt": None}
    body = {key: value for key, value in (BODY | chat).items() if value is not None}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["guidance"]["scores"].keys() == {"helpful"}


async def test_a_text_is_only_rewarded(client: httpx.AsyncClient, classifiers: dict[str, Path]) -> None:
    given = {"prompt": "It was fine.", "echo": True, "max_tokens": 0}
    answered = await post(client, **given, guidance={"prompt": "It was", "reward_models": {"bad": 2.0, "helpful": 0.0}})
    bad = Oracle(classifiers["gpt2"], label=0, template="", shares_tokens=False)
    expected = bad.reward("It was", Hypothesis(text=" fine."))
    told = answered["choices"][0]["guidance"]
    assert told["scores"]["bad"] == pytest.approx(expected, abs=1e-3)
    assert told["score"] == pytest.approx(2 * expected, abs=2e-3)


async def test_best_of_ranks_by_the_served_models_reward_model(client: httpx.AsyncClient) -> None:
    best = await post(client, best_of=6)
    named = await post(client, guidance={"method": "best_of_n", "successors": 6})
    assert best["choices"][0]["text"] == named["choices"][0]["text"]
    assert best["choices"][0]["guidance"] == named["choices"][0]["guidance"]


async def test_scored_tokens_are_counted_under_the_reward_models_name(
    served: tuple[Engine, httpx.AsyncClient],
) -> None:
    engine, client = served
    before = values(engine.metrics).get("w2s_scored_tokens_total{pair=kind}", 0)
    answered = await post(client, guidance={"reward_models": {"kind": 1.0}})
    after = values(engine.metrics)["w2s_scored_tokens_total{pair=kind}"]
    assert after - before == answered["guidance"]["scored_tokens"] > 0


@pytest.mark.parametrize(
    ("guidance", "field", "message"),
    [
        ({"reward_models": {"nobody": 1.0}}, "guidance.reward_models.nobody", "There is no reward model `nobody`"),
        ({"reward_models": {"same": 1.0}}, "guidance.reward_models.same", "There is no reward model `same`"),
        ({"pairs": {"helpful": 1.0}}, "guidance.pairs.helpful", "There is no pair `helpful`"),
        ({"reward_models": {"helpful": 1e9}}, "guidance.reward_models.helpful", "less than or equal to 1000000"),
        ({"reward_models": {}}, "guidance.pairs", "guidance.method cbs needs at least one pair"),
        ({"method": "eft"}, "guidance.pairs", "needs at least one pair"),
    ],
)
async def test_every_refusal_names_its_field(
    client: httpx.AsyncClient, guidance: dict[str, Any], field: str, message: str
) -> None:
    response = await client.post("/v1/completions", json=BODY | {"guidance": guidance})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == field
    assert message in error["message"]


async def test_a_prompt_of_token_ids_is_decoded_for_it(client: httpx.AsyncClient) -> None:
    tokens = (await client.post("/tokenize", json={"model": "plain", "prompt": BODY["prompt"]})).json()["tokens"]
    assert (await post(client, prompt=tokens))["choices"] == (await post(client))["choices"]
