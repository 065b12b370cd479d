"""Streamed calls over real sockets: events are read as they come, and a broken stream is a failed attempt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.remote import misbehaving
from tests.remote.conftest import World
from tests.remote.misbehaving import SOON, Behaviour, Call, Connection, answer
from w2s_core.errors import UpstreamError, UpstreamRefusedError, UpstreamTimeoutError
from w2s_core.large.sampling_calls import SamplingCalls
from w2s_core.remote import exchange
from w2s_core.remote.completion_stream import CompletionStream
from w2s_core.remote.provider import Provider

BODY: dict[str, Any] = {"prompt": "x", "n": 2, "max_tokens": 100}
USAGE = {"prompt_tokens": 5, "completion_tokens": 6}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def delta(index: int, text: str, finish_reason: str | None = None) -> dict[str, Any]:
    logprobs = {"tokens": list(text), "token_logprobs": [-1.0] * len(text)}
    return {"choices": [{"index": index, "text": text, "finish_reason": finish_reason, "logprobs": logprobs}]}


DELTAS = [delta(1, "d"), delta(0, "a"), delta(0, "b"), delta(1, "é"), delta(0, "c", "length"), delta(1, "", "stop")]
EVENTS: Sequence[Any] = [*DELTAS, {"choices": [], "usage": USAGE}]
DRAWN = 5  # tokens of the deltas; the provider counts an EOS as well


def lines_of(events: Sequence[Any], newline: str = "\n", end: str = "[DONE]") -> bytes:
    data = [*(json.dumps(event, ensure_ascii=False) for event in events), end]
    return "".join(f"data: {line}{newline}{newline}" for line in data if line).encode()


def streaming(content: bytes, size: int = 10**6, then: Behaviour | None = None) -> Behaviour:
    """Sends `content` in chunks of `size` bytes; without `then` it ends the response, too."""

    async def behave(connection: Connection, call: Call) -> None:
        parts = [content[i : i + size] for i in range(0, len(content), size)]
        await connection.send(HEAD + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts))
        if then is None:
            await connection.send(b"0\r\n\r\n")
        else:
            await then(connection, call)

    return behave


async def stream(provider: Provider, counts: list[int] | None = None) -> CompletionStream:
    """`counts` gets the tokens of each event."""
    on_tokens = (lambda _: None) if counts is None else counts.append
    call = provider.stream("/completions", BODY, lambda: CompletionStream("llama", on_tokens), tokens=1)
    return await asyncio.wait_for(call, SOON)


def check_whole(read: CompletionStream) -> None:
    completion = read.completion()
    texts = {choice.index: (choice.text, choice.finish_reason) for choice in completion.choices}
    assert texts == {0: ("abc", "length"), 1: ("dé", "stop")}
    assert [choice.logprobs.tokens for choice in completion.choices if choice.logprobs] == [["d", "é"], ["a", "b", "c"]]
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (5, 6)
    assert read.tokens == DRAWN


@pytest.mark.parametrize("size", [1, 7, 10**6])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
async def test_events_are_read_however_they_are_cut(world: World, size: int, newline: str) -> None:
    content = b": ping\n\nevent: message\n" + lines_of(EVENTS, newline).replace(b"data: ", b"data:", 1)
    server = await world.server(streaming(content, size), streaming(content, size))
    provider = await world.provider(server)
    for _ in range(2):
        check_whole(await stream(provider))
    assert server.connections == 1, "the connection is kept for the next call"
    assert world.statuses == ["200", "200"]


async def test_an_answer_that_is_no_stream_is_one_event(world: World) -> None:
    whole = {"choices": [{"text": "abc", "logprobs": {"tokens": ["abc"], "token_logprobs": [-1]}}], "usage": USAGE}
    provider = await world.provider(await world.server(answer(whole)))
    read = await stream(provider)
    assert read.events == read.tokens == 1
    assert read.completion().choices[0].text == "abc"


BROKEN = lines_of(EVENTS[:3], end="")
FAILURES: dict[str, tuple[Behaviour, str]] = {
    "ended without [DONE]": (streaming(lines_of(EVENTS, end="")), "dropped"),
    "dropped": (streaming(BROKEN, then=misbehaving.drop), "dropped"),
    "reset": (streaming(BROKEN, then=misbehaving.reset), "dropped"),
    "not JSON": (streaming(BROKEN + b"data: {\n\n"), "malformed"),
    "not an object": (streaming(BROKEN + b"data: [1]\n\n"), "malformed"),
    "an error": (streaming(BROKEN + lines_of([{"error": {"message": "oops", "code": 503}}])), "503"),
}


@pytest.mark.parametrize("kind", FAILURES)
async def test_a_broken_stream_is_tried_again_from_its_beginning(world: World, kind: str) -> None:
    behaviour, status = FAILURES[kind]
    provider = await world.provider(await world.server(behaviour, streaming(lines_of(EVENTS))))
    counts: list[int] = []
    check_whole(await stream(provider, counts))
    assert world.statuses == [status, "200"]
    first = DRAWN if kind == "ended without [DONE]" else 3
    assert sum(counts) == first + DRAWN, "what was drawn in vain was drawn as well"


async def test_another_base_url_takes_over_a_broken_stream(world: World) -> None:
    bad = await world.server(otherwise=streaming(BROKEN, then=misbehaving.reset))
    good = await world.server(otherwise=streaming(lines_of(EVENTS)))
    provider = await world.provider(bad, good, breaker_failures=100)
    for affinity in range(8):
        calls = SamplingCalls(provider, affinity, streams=True, grammar=None)
        tried = len(bad.calls)
        completion = await asyncio.wait_for(calls(BODY), SOON)
        assert {choice.text for choice in completion.choices} == {"abc", "dé"}
        assert calls.sampled_tokens == 6 + 3 * (len(bad.calls) - tried)
        assert calls.provider_usage.completion_tokens == 6
    assert bad.calls
    assert set(world.time.slept) <= {0.0}


@pytest.mark.parametrize("streams", [True, False])
async def test_of_a_choice_that_lists_no_tokens_all_that_was_asked_for_is_counted(world: World, streams: bool) -> None:
    choices = [{"index": 0, "text": "abc"}, {"index": 1, "text": ""}, delta(2, "de")["choices"][0]]
    whole = streaming(lines_of([{"choices": choices}])) if streams else answer({"choices": choices})
    calls = SamplingCalls(await world.provider(await world.server(whole)), 0, streams=streams, grammar=None)
    await calls(BODY)
    assert calls.sampled_tokens == calls.provider_usage.completion_tokens == 100 + 0 + 2


@pytest.mark.parametrize(
    ("event", "said"),
    [({"choices": None}, "choices"), ({}, "choices"), ({"choices": [{"text": 1}]}, r"choices\.0\.text")],
)
async def test_an_event_that_makes_no_sense_is_one_clear_error(world: World, event: Any, said: str) -> None:
    server = await world.server(otherwise=streaming(lines_of([*EVENTS[:2], event])))
    provider = await world.provider(server)
    with pytest.raises(UpstreamError, match=said):
        await stream(provider)
    assert len(server.calls) == 1, "it would make no more sense again"
    assert provider.available


async def test_a_refused_stream_is_a_refused_call(world: World) -> None:
    provider = await world.provider(await world.server(answer({"error": {"message": "no streams"}}, 400)))
    with pytest.raises(UpstreamRefusedError, match="no streams"):
        await stream(provider)


@pytest.mark.parametrize("newline", [b"\n", b""])
async def test_a_stream_without_end_is_refused(world: World, newline: bytes) -> None:
    async def for_ever(connection: Connection, call: Call) -> None:
        line = b": ping" * 100 + newline
        while True:
            await connection.send(b"%x\r\n%s\r\n" % (len(line), line))

    server = await world.server(streaming(BROKEN, then=for_ever))
    provider = await world.provider(server, max_answer_bytes=10_000)
    with pytest.raises(UpstreamError, match="more than 12048 bytes"):
        await stream(provider)
    assert len(server.calls) == 1
    await server.until(lambda: server.connections == 0)


async def test_a_stream_that_stalls_is_given_up_in_time(world: World) -> None:
    server = await world.server(otherwise=streaming(BROKEN, then=misbehaving.hang))
    provider = await world.provider(server, max_retries=0, call_timeout_s=0.3)
    with pytest.raises(UpstreamTimeoutError):
        await stream(provider)
    await server.until(lambda: server.connections == 0)


async def test_a_connection_left_open_behind_the_end_keeps_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_MAX_DRAIN_S", 0.01)
    server = await world.server(otherwise=streaming(lines_of(EVENTS), then=misbehaving.hang))
    check_whole(await stream(await world.provider(server)))
    await server.until(lambda: server.connections == 0)


async def test_leaving_closes_the_connection_and_counts_what_has_arrived(world: World) -> None:
    server = await world.server(otherwise=streaming(BROKEN, then=misbehaving.hang))
    calls = SamplingCalls(await world.provider(server), 1, streams=True, grammar=None)
    task = asyncio.create_task(calls(BODY))
    async with asyncio.timeout(SOON):
        while calls.sampled_tokens < 3:
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.until(lambda: server.connections == 0)
    assert calls.sampled_tokens == 3
    assert world.statuses == ["cancelled"]


async def test_a_call_that_waits_for_its_turn_has_drawn_nothing(world: World) -> None:
    server = await world.server(otherwise=misbehaving.hang)
    provider = await world.provider(server, max_concurrency=1)
    calls = [SamplingCalls(provider, 1, streams=False, grammar=None) for _ in range(2)]
    tasks = [asyncio.create_task(call(BODY)) for call in calls]
    await server.until(lambda: server.busy == 1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [call.sampled_tokens for call in calls] == [200, 0]
