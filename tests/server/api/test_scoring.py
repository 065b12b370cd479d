"""Scoring a fixed text: `echo` with `max_tokens` 0, under the large model and under each pair."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.fakes import FakeLargeModel, FakeScorer, fake_engine, letters
from tests.server.conftest import Connect
from w2s_core.types import TextPrompt

TEXT = "a bab aa"  # FakeScorer: 1 for each a, -1/2 for each b
PAIRS = {"pairs": {"positive": 1.0, "polite": 0.5}}


class Scorers:
    def __init__(self) -> None:
        self.positive, self.polite = FakeScorer(), FakeScorer(lambda text, ended: -float(len(text)))
        self.large = FakeLargeModel(letters("ab "))


@pytest.fixture
def parts() -> Scorers:
    return Scorers()


@pytest.fixture
async def client(connect: Connect, parts: Scorers) -> httpx.AsyncClient:
    return await connect(fake_engine(parts.large, {"positive": parts.positive, "polite": parts.polite}))


async def post(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    asked = {"model": "plain", "prompt": TEXT, "echo": True, "max_tokens": 0, "guidance": PAIRS, **body}
    return await client.post("/v1/completions", json=asked)


async def choices(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    response = await post(client, **body)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["choices"]
    return found


async def test_the_whole_text_is_scored_behind_nothing(client: httpx.AsyncClient, parts: Scorers) -> None:
    [choice] = await choices(client, logprobs=1)
    assert choice["guidance"] == {"score": 3.0 - 0.5 * 8, "scores": {"positive": 3.0, "polite": -8.0}}
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    assert choice["logprobs"]["tokens"] == list(TEXT)
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert len(choice["logprobs"]["token_logprobs"]) == len(TEXT)
    assert parts.positive.prompts == [TextPrompt("")]
    assert not parts.large.calls
    assert [y.ended for y in parts.positive.seen[0]] == [False]


async def test_what_it_begins_with_can_be_the_prompt(client: httpx.AsyncClient, parts: Scorers) -> None:
    [choice] = await choices(client, guidance={**PAIRS, "prompt": "a ba"})
    assert choice["guidance"]["scores"] == {"positive": 1.5, "polite": -4.0}
    assert choice["text"] == TEXT
    assert parts.positive.prompts == [TextPrompt("a ba")]


async def test_the_served_models_own_pairs_and_every_kind_of_prompt(client: httpx.AsyncClient) -> None:
    for prompt in (["a", "b"], [[97], [98]]):
        scores = [c["guidance"]["score"] for c in await choices(client, model="guided", guidance=None, prompt=prompt)]
        assert scores == [1.0, -0.5]
    [one] = await choices(client, model="guided", guidance={"prompt": "a"}, prompt=[97, 98])
    assert one["guidance"]["score"] == -0.5


async def test_several_choices_are_the_same(client: httpx.AsyncClient) -> None:
    first, second = await choices(client, n=2)
    assert first | {"index": 1} == second


async def test_nothing_is_sampled_and_the_cost_is_told(client: httpx.AsyncClient) -> None:
    body = (await post(client)).json()
    details = {"prompt_tokens_details": {"cached_tokens": 0}}
    assert body["usage"] == {"prompt_tokens": 8, "completion_tokens": 0, "total_tokens": 8, **details}
    report = body["guidance"]
    assert (report["chunks"], report["sampled_tokens"]) == (0, 0)


async def test_streamed_it_is_the_same(client: httpx.AsyncClient) -> None:
    [whole] = await choices(client, logprobs=0)
    response = await post(client, logprobs=0, stream=True)
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in response.text.split("\n\n")[:-2]]
    told = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["text"] for choice in told) == TEXT
    assert told[-1]["guidance"] == whole["guidance"]
    assert told[0]["logprobs"] == whole["logprobs"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"guidance": {**PAIRS, "prompt": "b"}}, "guidance.prompt"),
        ({"guidance": {**PAIRS, "prompt": "a"}, "prompt": ["a b", "b"]}, "guidance.prompt"),
        ({"guidance": {**PAIRS, "prompt": "a"}, "max_tokens": 1}, "guidance.prompt"),
        ({"guidance": {"method": "none", "prompt": "a"}}, "guidance.prompt"),
        ({"guidance": {**PAIRS, "prompt": 3}}, "guidance.prompt"),
        ({"echo": False}, "max_tokens"),
    ],
)
async def test_what_is_refused(client: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    response = await post(client, **body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


async def test_without_pairs_there_is_no_score(client: httpx.AsyncClient) -> None:
    [choice] = await choices(client, guidance={"method": "none"})
    assert "guidance" not in choice
