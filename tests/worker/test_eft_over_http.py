"""EFT over HTTP: its identities, streams, log-probabilities, what the answer tells, and every refusal."""

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
from tests.worker.eft import eft_config
from w2s_core.build.engine import build_engine
from w2s_core.engine.engine import Engine

pytestmark = pytest.mark.asyncio(loop_scope="session")

BODY: dict[str, Any] = {"model": "eft", "prompt": "Once upon a time", "max_tokens": 20, "seed": 7, "n": 2}
TUNED = {"method": "eft", "pairs": {"self": 1.0}}
PLAIN = {"method": "none"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(folders: dict[str, Path]) -> AsyncIterator[httpx.AsyncClient]:
    ready: asyncio.Future[Engine] = asyncio.get_running_loop().create_future()
    host = EngineHost(lambda: build_engine(eft_config(folders)), ready.set_result, ready.set_exception)
    async with uvicorn_server(create_app(host)) as (url, _), httpx.AsyncClient(base_url=url, timeout=120) as connected:
        await ready
        yield connected


async def post(client: httpx.AsyncClient, path: str = "/v1/completions", **changes: Any) -> dict[str, Any]:
    response = await client.post(path, json=BODY | changes)
    assert response.status_code == 200, response.text
    answered: dict[str, Any] = response.json()
    return answered


def texts(answered: dict[str, Any]) -> list[tuple[str, str]]:
    return [(choice["text"], choice["finish_reason"]) for choice in answered["choices"]]


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0}, {"temperature": 0.7, "top_p": 0.9, "presence_penalty": 0.5, "stop": ["a"]}]
)
async def test_its_identities_hold(client: httpx.AsyncClient, sampling: dict[str, Any]) -> None:
    nothing = await post(client, **sampling, guidance={"pairs": {"same": 0}})
    assert texts(nothing) == texts(await post(client, **sampling, model="plain"))
    tuned = await post(client, **sampling, guidance=TUNED)
    assert texts(tuned) == texts(await post(client, **sampling, model="tuned")) != texts(nothing)
    search = {"method": "cbs", "pairs": {"self": 1.0}, "beam_width": 2, "successors": 2}
    steered = await post(client, **sampling, guidance=search | {"proposal": "eft"})
    assert texts(steered) == texts(await post(client, **sampling, model="tuned", guidance=search))


async def test_a_stream_is_the_whole_answer(client: httpx.AsyncClient) -> None:
    whole = await post(client, logprobs=2, guidance={"pairs": {"same": 3.0, "reverse": -0.5}, "plausibility": 0.1})
    streamed = {0: "", 1: ""}
    logprobs: dict[int, list[float]] = {0: [], 1: []}
    body = BODY | {"stream": True, "logprobs": 2}
    body["guidance"] = {"pairs": {"same": 3.0, "reverse": -0.5}, "plausibility": 0.1}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    streamed[choice["index"]] += choice["text"]
                    if choice["logprobs"]:
                        logprobs[choice["index"]] += choice["logprobs"]["token_logprobs"]
    assert [streamed[i] for i in range(2)] == [choice["text"] for choice in whole["choices"]]
    for i, choice in enumerate(whole["choices"]):
        assert logprobs[i] == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-4)


async def test_the_answer_says_what_was_done(client: httpx.AsyncClient) -> None:
    answered = await post(client, ignore_eos=True)
    told = answered["guidance"]
    assert (told["method"], told["beam_width"], told["successors"], told["chunks"]) == ("eft", 2, 1, 0)
    assert told["sampled_tokens"] == answered["usage"]["completion_tokens"] == 40
    assert all("guidance" not in choice for choice in answered["choices"]), "no choice was scored"
    metrics = (await client.get("/metrics")).text
    assert 'w2s_requests_total{finish_reason="length",method="eft",served_model="eft"}' in metrics


async def test_a_chat_reads_each_models_own_template(client: httpx.AsyncClient) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20, "seed": 1}
    answered = [
        await client.post("/v1/chat/completions", json=chat | {"model": model, "guidance": guidance})
        for model, guidance in (("eft", TUNED), ("tuned", PLAIN), ("plain", PLAIN))
    ]
    steered, tuned, plain = [response.json()["choices"][0]["message"]["content"] for response in answered]
    assert steered == tuned != plain


async def test_a_text_is_scored_as_with_any_guidance(client: httpx.AsyncClient) -> None:
    given = {"prompt": "It was fine.", "echo": True, "max_tokens": 0, "n": 1}
    answered = await post(client, **given, guidance={"pairs": {"self": 2.0}})
    other = await post(client, **given, guidance={"method": "cbs", "pairs": {"self": 2.0}})
    scores, others = (found["choices"][0]["guidance"]["scores"] for found in (answered, other))
    assert scores == pytest.approx(others)


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"guidance": {"pairs": {"foreign": 1.0}}}, "guidance.method", "foreign.tuned has another vocabulary"),
        (
            {"guidance": {"method": "cbs", "pairs": {"self": 1.0, "foreign": 1.0}, "proposal": "eft"}},
            "guidance.proposal",
            "foreign.tuned has another vocabulary",
        ),
        ({"guidance": {"pairs": {"foreign": 1.0}}, "best_of": 3}, "guidance.proposal", "another vocabulary"),
        ({"guidance": {"pairs": {}}}, "guidance.pairs", "guidance.method eft needs at least one pair"),
        (
            {"guidance": {"method": "best_of_n", "pairs": {}, "proposal": "eft"}},
            "guidance.pairs",
            "guidance.proposal eft needs at least one pair",
        ),
        ({"guidance": {"pairs": {"nobody": 1.0}}}, "guidance.pairs.nobody", "There is no pair"),
        ({"guidance": {"plausibility": 1.5}}, "guidance.plausibility", "less than or equal to 1"),
        ({"guidance": {"proposal": "tuned"}}, "guidance.proposal", "'base' or 'eft'"),
        ({"guidance": {"max_sampled_tokens": 1}}, "guidance.max_sampled_tokens", "2 sequences"),
        ({"n": 100}, "n", "at most 64"),
    ],
)
async def test_every_refusal_names_its_field(
    client: httpx.AsyncClient, changes: dict[str, Any], field: str, message: str
) -> None:
    response = await client.post("/v1/completions", json=BODY | changes)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == field
    assert message in error["message"]
