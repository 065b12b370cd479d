"""Response bodies, complete and streamed: OpenAI's formats, and the fields that guidance adds."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.answers import ChunkStream, ResponseMetadata, full_response
from server.api.response_builders import ChatBuilder, CompletionBuilder
from server.api.schemas.base import StreamOptions
from server.app import VERSION
from server.http.sse import DONE, encode_chunk
from tests.server.conftest import Connect
from tests.server.fake_engine import REPORT, FakeEngine, Script, hypothesis
from w2s_core.engine.events import ChoiceFinished, Event, GuidanceReport, RequestFinished, TextCommitted
from w2s_core.types import Candidate

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TEXT = "Hello wörld\n"
CACHED = {"prompt_tokens_details": {"cached_tokens": 0}}
NOT_ASKED_FOR = {"prompt_logprobs": None, "prompt_token_ids": None}


def body(path: str, **changes: Any) -> dict[str, Any]:
    prompt = {"prompt": "x"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "x"}]}
    return {"model": "plain", **prompt, **changes}


async def whole(client: httpx.AsyncClient, path: str, **changes: Any) -> dict[str, Any]:
    response = await client.post(path, json=body(path, **changes))
    assert response.status_code == 200, response.text
    return dict(response.json())


async def chunks(client: httpx.AsyncClient, path: str, **changes: Any) -> list[dict[str, Any]]:
    response = await client.post(path, json=body(path, stream=True, **changes))
    assert response.status_code == 200, response.text
    frames = response.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    assert all(frame.startswith("data: ") for frame in frames[:-1])
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


async def test_a_completion(connect: Connect) -> None:
    answer = await whole(await connect(), COMPLETIONS, n=2)
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1_700_000_000
    choice = {"text": TEXT, "logprobs": None, "finish_reason": "stop", **NOT_ASKED_FOR}
    assert answer == {
        "object": "text_completion",
        "model": "plain",
        "system_fingerprint": f"w2s-{VERSION}",
        "choices": [{"index": 0, **choice}, {"index": 1, **choice}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, **CACHED},
    }


async def test_a_chat_completion(connect: Connect) -> None:
    answer = await whole(await connect(), CHAT)
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 1_700_000_000
    message = {"role": "assistant", "content": TEXT, "refusal": None}
    assert answer == {
        "object": "chat.completion",
        "model": "plain",
        "system_fingerprint": f"w2s-{VERSION}",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, **CACHED},
        **NOT_ASKED_FOR,
    }


async def test_choices_are_sorted_however_they_finish(connect: Connect) -> None:
    script: Script = [ChoiceFinished(i, hypothesis(str(i)), False) for i in (2, 0, 1)] + [RequestFinished(1, 3, None)]
    answer = await whole(await connect(FakeEngine(script)), COMPLETIONS, n=3)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [(0, "0"), (1, "1"), (2, "2")]


async def test_a_completions_stream(connect: Connect) -> None:
    stream = await chunks(await connect(), COMPLETIONS)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in stream}) == 1
    assert stream[0]["object"] == "text_completion"
    assert [chunk["choices"] for chunk in stream] == [
        [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}]
        for text, reason in (("Hello", None), (" wörld\n", None), ("", "stop"))
    ]
    assert all("usage" not in chunk and "guidance" not in chunk for chunk in stream)


async def test_a_chat_stream(connect: Connect) -> None:
    stream = await chunks(await connect(), CHAT, n=2)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in stream}) == 1
    assert stream[0]["object"] == "chat.completion.chunk"
    for index in (0, 1):
        choices = [c for chunk in stream for c in chunk["choices"] if c["index"] == index]
        assert [(c["delta"], c["finish_reason"]) for c in choices] == [
            ({"role": "assistant", "content": ""}, None),
            ({"content": "Hello"}, None),
            ({"content": " wörld\n"}, None),
            ({}, "stop"),
        ]
        assert all(c["logprobs"] is None for c in choices)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_include_usage_adds_one_chunk_and_null_to_the_others(connect: Connect, path: str) -> None:
    client = await connect()
    *others, last = await chunks(client, path, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in others)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, **CACHED}
    assert len(others) == len(await chunks(client, path))


async def test_continuous_usage_is_in_every_chunk_and_ends_at_the_total(connect: Connect) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = await chunks(await connect(), COMPLETIONS, stream_options=options)
    assert [chunk["usage"]["completion_tokens"] for chunk in stream] == [1, 2, 2, 2]
    assert {chunk["usage"]["prompt_tokens"] for chunk in stream} == {3}
    chat = await chunks(await connect(), CHAT, stream_options=options)
    assert [chunk["usage"]["completion_tokens"] for chunk in chat] == [0, 1, 2, 2, 2]
    assert {chunk["usage"]["prompt_tokens"] for chunk in chat} == {3}


# Guidance


GUIDED = {"method": "cbs", "beam_width": 4, "successors": 4, "chunk_length": 5}
GUIDED |= {"chunks": 2, "sampled_tokens": 80, "scored_tokens": 60}  # type: ignore[dict-item]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_a_guided_answer_says_what_it_cost(connect: Connect, path: str) -> None:
    answer = await whole(await connect(), path, model="steered")
    assert answer["guidance"] == GUIDED
    assert answer["choices"][0]["guidance"] == {"score": 3.0, "scores": {"positive": 1.5}}


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_a_plain_answer_says_nothing_of_guidance(connect: Connect, path: str) -> None:
    client = await connect()
    assert "guidance" not in json.dumps(await whole(client, path))
    assert "guidance" not in json.dumps(await chunks(client, path))


@pytest.mark.parametrize("options", [None, {"include_usage": True}])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_the_chunk_that_ends_the_last_choice_has_the_report(
    connect: Connect, path: str, options: dict[str, bool] | None
) -> None:
    stream = await chunks(await connect(), path, model="steered", n=2, stream_options=options)
    reporting = [chunk for chunk in stream if "guidance" in chunk]
    assert [chunk["guidance"] for chunk in reporting] == [GUIDED]
    ending = [chunk for chunk in stream if chunk["choices"] and chunk["choices"][0]["finish_reason"]]
    assert reporting == ending[-1:]
    assert [c["guidance"]["score"] for chunk in ending for c in chunk["choices"]] == [3.0, 3.0]


async def test_the_tree_is_returned_when_there_is_one(connect: Connect) -> None:
    node = Candidate(0, None, "He", 1.5, 1.25, {"positive": 1.5}, None, kept=True)
    fields = {name: getattr(REPORT, name) for name in REPORT.__slots__}
    report = GuidanceReport(**fields | {"tree": [[[node]]]})
    script = [ChoiceFinished(0, hypothesis("He", guided=True), True), RequestFinished(1, 1, report)]
    answer = await whole(await connect(FakeEngine(script)), COMPLETIONS, model="steered")
    candidate = {"id": 0, "parent": None, "text": "He", "score": 1.5, "rank": 1.25, "scores": {"positive": 1.5}}
    assert answer["guidance"]["tree"] == [[[candidate | {"finish_reason": None, "kept": True}]]]


# Any answer at all


@st.composite
def scripts(draw: st.DrawFn) -> tuple[list[Event], list[str]]:
    """The engine's events for some choices, in any interleaving, and each choice's text."""
    pieces = draw(st.lists(st.lists(st.text(min_size=1), max_size=4), min_size=1, max_size=3))
    texts = ["".join(each) for each in pieces]
    queues: list[list[Event]] = [
        [*(TextCommitted(i, piece) for piece in each), ChoiceFinished(i, hypothesis(texts[i]), False)]
        for i, each in enumerate(pieces)
    ]
    events: list[Event] = []
    while any(queues):
        events.append(draw(st.sampled_from([queue for queue in queues if queue])).pop(0))
    return [*events, RequestFinished(1, 1, None)], texts


@pytest.mark.parametrize("builder", [CompletionBuilder(), ChatBuilder()])
@given(script=scripts(), usage=st.booleans())
async def test_a_stream_says_what_the_whole_says(
    builder: CompletionBuilder | ChatBuilder, script: tuple[list[Event], list[str]], usage: bool
) -> None:
    """For any characters, events stay intact (a newline or U+2028 must not end one), every choice
    opens before its text and finishes once, and the deltas add up to the complete response."""
    events, texts = script

    async def played() -> Any:
        for each in events:
            yield each

    metadata = ResponseMetadata.new("id", "m")
    streamed = ChunkStream(builder, metadata, StreamOptions(include_usage=usage), len(texts))
    frames = [encode_chunk(chunk) async for chunk in streamed.chunks(played())]
    wire = (b"".join(frames) + DONE).decode()
    assert wire.count("\n\n") == len(frames) + 1
    assert wire.count("\r") == 0
    received = ["", "", ""]
    ended: list[int] = []
    for frame in wire.split("\n\n")[:-2]:
        assert frame.count("\n") == 0
        for choice in json.loads(frame.removeprefix("data: "))["choices"]:
            assert choice["index"] not in ended
            received[choice["index"]] += choice["text"] if "text" in choice else choice["delta"].get("content", "")
            if choice["finish_reason"]:
                ended.append(choice["index"])
    answer = json.loads((await full_response(played(), builder, metadata)).model_dump_json(exclude_unset=True))
    assert received[: len(texts)] == texts
    assert ended == [each.index for each in events if isinstance(each, ChoiceFinished)], (
        "at once, in the engine's order"
    )
    assert [choice.get("text", choice.get("message", {}).get("content")) for choice in answer["choices"]] == texts
