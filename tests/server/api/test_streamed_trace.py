"""Chunks with the rounds of a search: where they come in a stream, what they say, and who gets none."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from jsonschema import Draft202012Validator

from tests.fakes import FakeLargeModel, FakeScorer, fake_engine, letters
from tests.server.api.test_openapi import SCHEMA
from tests.server.api.test_streams_add_up import text_of
from tests.server.conftest import Connect, Serve
from w2s_core.engine import planning

CHUNKS = {"/v1/completions": "Completion", "/v1/chat/completions": "ChatChunk"}
BOTH = pytest.mark.parametrize("path", list(CHUNKS))
SEARCH = {"beam_width": 3, "successors": 3, "chunk_length": 4}


def body_for(path: str, **fields: Any) -> dict[str, Any]:
    prompt: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else {"prompt": "x"}
    return {"model": "guided", "seed": 2, "max_tokens": 32, "stream": True, **prompt, **fields}


@pytest.fixture
async def client(connect: Connect) -> httpx.AsyncClient:
    return await connect(fake_engine(FakeLargeModel(letters(eos=0.02))))


async def chunks_of(client: httpx.AsyncClient, path: str, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed answer, each of which has the schema that is promised."""
    response = await client.post(path, json=body_for(path, **fields))
    assert response.status_code == 200, response.text
    *frames, done, nothing = response.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames]
    schema = {"$ref": f"#/components/schemas/{CHUNKS[path]}", "components": SCHEMA["components"]}
    for chunk in chunks:
        Draft202012Validator(schema).validate(chunk)
    return chunks


def is_round(chunk: dict[str, Any]) -> bool:
    return "round" in (chunk.get("guidance") or {})


def texts(chunks: list[dict[str, Any]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for choice in [choice for chunk in chunks for choice in chunk["choices"]]:
        found[choice["index"]] = found.get(choice["index"], "") + text_of(choice)
    return found


def whole_texts(rounds: list[dict[str, Any]]) -> list[dict[int, str]]:
    """The text of each candidate by its id, for each round."""
    rebuilt: list[dict[int, str]] = [{}]
    for round_ in rounds:
        parents = rebuilt[-1]
        rebuilt.append(
            {
                node["id"]: ("" if node["parent"] is None else parents[node["parent"]])[: node["offset"]] + node["text"]
                for node in round_["candidates"]
            }
        )
    return rebuilt[1:]


def same_in_every_request(chunk: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in chunk.items() if key not in ("id", "created")}


@BOTH
@pytest.mark.parametrize(
    "fields",
    [
        {"stream_options": {"include_usage": True}},
        {"n": 2, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"stop": ["ba"]},
        {"return_token_ids": True},
    ],
)
async def test_the_stream_is_the_same_but_for_its_rounds(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any]
) -> None:
    traced = await chunks_of(client, path, guidance={**SEARCH, "trace": "stream"}, **fields)
    without = await chunks_of(client, path, guidance=SEARCH, **fields)
    others = [same_in_every_request(chunk) for chunk in traced if not is_round(chunk)]
    assert others == [same_in_every_request(chunk) for chunk in without]
    assert not any(is_round(chunk) for chunk in without)
    rounds = [chunk for chunk in traced if is_round(chunk)]
    assert len(rounds) > 2
    assert len({(chunk["id"], chunk["created"], chunk["system_fingerprint"]) for chunk in traced}) == 1
    for chunk in rounds:
        assert chunk["choices"] == []
        assert chunk.get("usage", 0) == (None if "stream_options" in fields else 0)


@BOTH
async def test_each_round_comes_before_the_text_that_it_commits(client: httpx.AsyncClient, path: str) -> None:
    chunks = await chunks_of(client, path, guidance={**SEARCH, "trace": "stream"})
    sent, committed = "", 0
    rounds = [chunk["guidance"]["round"] for chunk in chunks if is_round(chunk)]
    answers = whole_texts(rounds)
    for chunk in chunks[:-1]:
        if is_round(chunk):
            assert len(sent) == committed
            committed = chunk["guidance"]["round"]["committed"]
        sent += texts([chunk]).get(0, "")
    best = max((node for node in rounds[-1]["candidates"] if node["fate"] in ("kept", "finished")), key=_rank)
    assert answers[-1][best["id"]] == texts(chunks)[0] == sent
    assert 0 < rounds[-1]["committed"] < len(sent)


def _rank(node: dict[str, Any]) -> float:
    return float(node["rank"])


@BOTH
async def test_the_rounds_are_the_tree_of_the_same_request(client: httpx.AsyncClient, path: str) -> None:
    traced = await chunks_of(client, path, guidance={**SEARCH, "trace": "stream"})
    *_, last = await chunks_of(client, path, guidance={**SEARCH, "trace": True})
    assert "tree" not in traced[-1]["guidance"]
    [tree] = last["guidance"].pop("tree")
    assert last["guidance"] == traced[-1]["guidance"]
    rounds = [chunk["guidance"]["round"] for chunk in traced if is_round(chunk)]
    assert [round_["chunk"] for round_ in rounds] == list(range(1, len(tree) + 1))
    for round_, chunk, whole in zip(rounds, tree, whole_texts(rounds), strict=True):
        for node, known in zip(round_["candidates"], chunk, strict=False):
            assert whole[node["id"]] == known["text"]
            for key in ("id", "parent", "score", "rank", "scores", "finish_reason"):
                assert node[key] == known[key]
            assert (node["fate"] in ("kept", "finished")) == known["kept"]


async def test_several_prompts_tell_their_rounds_apart(client: httpx.AsyncClient) -> None:
    path = "/v1/completions"
    chunks = await chunks_of(client, path, prompt=["x", "yy"], n=2, guidance={**SEARCH, "trace": "stream"})
    rounds = [chunk["guidance"]["round"] for chunk in chunks if is_round(chunk)]
    assert {(round_["prompt"], *round_["choices"]) for round_ in rounds} == {(0, 0, 1), (1, 2, 3)}
    for prompt in (0, 1):
        own = [round_ for round_ in rounds if round_["prompt"] == prompt]
        assert [round_["chunk"] for round_ in own] == list(range(1, len(own) + 1))
        assert texts(chunks)[2 * prompt] in whole_texts(own)[-1].values()


@BOTH
async def test_rounds_beyond_the_bound_are_left_out(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(planning, "MAX_TREE_CHARACTERS", 20 * 200)
    chunks = await chunks_of(client, path, guidance={**SEARCH, "trace": "stream"})
    *complete, last = [chunk["guidance"]["round"] for chunk in chunks if is_round(chunk)]
    assert all(round_["candidates"] for round_ in complete)
    assert last == {"prompt": 0, "choices": [0], "chunk": len(complete) + 1, "truncated": True}
    assert chunks[-1]["guidance"]["chunks"] > len(complete) + 1
    assert texts(chunks) == texts(await chunks_of(client, path, guidance=SEARCH))
    assert sum(len(json.dumps(round_)) for round_ in complete) < 20 * 200


@BOTH
async def test_finished_answers_stay_and_equal_ones_are_merged(connect: Connect, path: str) -> None:
    scorer = FakeScorer(lambda text, ended: 9.0 * ended - len(text))
    client = await connect(fake_engine(FakeLargeModel(letters("ab", eos=0.3)), {"positive": scorer}))
    guidance = {"beam_width": 3, "successors": 4, "chunk_length": 1, "trace": "stream"}
    chunks = await chunks_of(client, path, max_tokens=6, guidance=guidance)
    rounds = [chunk["guidance"]["round"] for chunk in chunks if is_round(chunk)]
    fates = {node["fate"] for round_ in rounds for node in round_["candidates"]}
    assert fates == {"kept", "pruned", "merged", "finished"}
    ended = [node["id"] for node in rounds[0]["candidates"] if node["fate"] == "finished"]
    again = [node for node in rounds[1]["candidates"] if node["parent"] in ended]
    assert [(node["text"], node["finish_reason"]) for node in again] == [("", "stop")] * len(ended)
    assert ended


@BOTH
@pytest.mark.parametrize("guidance", [{"method": "none", "trace": "stream"}, None])
async def test_without_a_search_there_are_no_rounds(client: httpx.AsyncClient, path: str, guidance: Any) -> None:
    assert not any(is_round(chunk) for chunk in await chunks_of(client, path, guidance=guidance, max_tokens=4))


async def test_the_official_client_reads_such_a_stream(serve: Serve) -> None:
    url = await serve(fake_engine(FakeLargeModel(letters(eos=0.02))))
    ask = {"model": "guided", "seed": 2, "max_tokens": 32, "stream": True}
    extra = {"guidance": {**SEARCH, "trace": "stream"}}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        chat = await client.chat.completions.create(
            **ask,  # type: ignore[call-overload]
            messages=[{"role": "user", "content": "x"}],
            extra_body=extra,
        )
        chunks = [chunk async for chunk in chat]
        completion = await client.completions.create(**ask, prompt="x", extra_body=extra)  # type: ignore[call-overload]
        parts = [chunk async for chunk in completion]
    for found in (chunks, parts):
        rounds = [chunk.model_extra["guidance"]["round"] for chunk in found if not chunk.choices]
        assert [round_["chunk"] for round_ in rounds] == list(range(1, len(rounds) + 1))
        assert len(rounds) > 2
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text
    assert "".join(choice.text for chunk in parts for choice in chunk.choices)
