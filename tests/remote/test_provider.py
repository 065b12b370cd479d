"""One base_url that misbehaves: every call ends in a correct answer or a clear error, and leaks nothing."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from tests.remote import misbehaving
from tests.remote.conftest import KEY, World
from tests.remote.misbehaving import ANSWER, SOON, Behaviour, answer
from w2s_core.errors import UnavailableError, UpstreamError, UpstreamTimeoutError
from w2s_core.remote.provider import MAX_RETRY_AFTER_S

BODY = {"model": "m", "prompt": [1, 2, 3], "max_tokens": 5}
BRIEF_S = 0.3  # deadline of a call that never ends

DROPS: dict[str, Behaviour] = {
    "closed": misbehaving.drop,
    "reset": misbehaving.reset,
    "half body": misbehaving.half_body,
    "half chunk": misbehaving.half_chunk,
    "not HTTP": misbehaving.not_http,
    "absurd length": misbehaving.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n{}"),
    "negative length": misbehaving.raw(b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\n{}"),
}
GARBAGE: dict[str, Behaviour] = {
    "half JSON": misbehaving.half_json,
    "HTML": misbehaving.html,
    "garbage": answer(b"\x00\xff\x13garbage"),
    "empty": answer(b""),
    "NaN": answer(b'{"choices": [{"logprobs": [NaN]}]}'),
    "Infinity": answer(b'{"choices": [{"logprobs": [-Infinity]}]}'),
    "overflow": answer(b'{"choices": [{"logprobs": [-1e999]}]}'),
    "a list": answer([1]),
    "null": answer(None),
    "gzip garbage": answer(b"garbage", content_encoding="gzip"),
    "not asked for": answer(b"garbage", content_encoding="zstd"),
    "twice packed": answer(gzip.compress(gzip.compress(b"{}")), content_encoding="gzip, gzip"),
}
OVERLOAD: dict[str, Behaviour] = {
    "429": answer({"error": {"message": "slow down"}}, 429),
    "500": answer({"error": {"message": "oops"}}, 500),
    "503": answer(b"<html>", 503),
    "200 with an error": answer({"error": {"message": "oops", "code": 503}}),
}
TRANSIENT = {**DROPS, **GARBAGE, **OVERLOAD}
HANGS: dict[str, Behaviour] = {
    "hang": misbehaving.hang,
    "hang in body": misbehaving.hang_in_body,
    "slow drip": misbehaving.drip,
}


async def soon(work: Any) -> Any:
    return await asyncio.wait_for(work, SOON)


async def test_a_call_arrives_as_it_was_meant(world: World) -> None:
    server = await world.server(answer(), answer({"data": []}))
    provider = await world.provider(server)
    assert await soon(provider.post("/completions", BODY)) == ANSWER
    assert await soon(provider.get("/models")) == {"data": []}
    post, get = server.calls
    assert (post.method, post.path, post.body) == ("POST", "/v1/completions", BODY)
    assert (get.method, get.path, get.body) == ("GET", "/v1/models", None)
    assert post.headers["authorization"] == f"Bearer {KEY}"
    assert post.headers["content-type"] == "application/json"
    assert server.connections == 1, "the connection is kept for the next call"


@pytest.mark.parametrize("nothing", [None, {}, ""])
async def test_an_empty_error_field_is_no_error(world: World, nothing: Any) -> None:
    """Some providers send every field of their schema, empty or not."""
    provider = await world.provider(await world.server(answer({**ANSWER, "error": nothing})))
    assert await soon(provider.post("/completions", BODY)) == {**ANSWER, "error": nothing}
    assert world.statuses == ["200"]


@pytest.mark.parametrize("behaviour", TRANSIENT.values(), ids=TRANSIENT)
async def test_what_may_pass_is_tried_again_after_a_pause(world: World, behaviour: Behaviour) -> None:
    provider = await world.provider(await world.server(behaviour, behaviour))
    assert await soon(provider.post("/completions", BODY)) == ANSWER
    assert [attempt.number for attempt in world.attempts] == [1, 2, 3]
    assert world.statuses[2] == "200"
    assert len(world.time.slept) == 2
    assert all(0 <= pause <= 8 for pause in world.time.slept)


@pytest.mark.parametrize("behaviour", TRANSIENT.values(), ids=TRANSIENT)
async def test_what_does_not_pass_is_one_clear_error(world: World, behaviour: Behaviour) -> None:
    server = await world.server(otherwise=behaviour)
    provider = await world.provider(server, max_retries=2)
    with pytest.raises(UpstreamError) as caught:
        await soon(provider.post("/completions", BODY))
    assert type(caught.value) is UpstreamError
    message = str(caught.value)
    assert message.startswith("The provider of `llama` ")
    assert message.endswith((".", "down", "oops", ")"))
    assert not {"<", "{", "\x00"} & set(message)
    assert caught.value.__suppress_context__, "no trace leads into the connection"
    assert len(server.calls) == 3


@pytest.mark.parametrize("behaviour", HANGS.values(), ids=HANGS)
async def test_one_that_hangs_is_given_up_in_time_and_not_asked_again(world: World, behaviour: Behaviour) -> None:
    server = await world.server(otherwise=behaviour)
    provider = await world.provider(server, max_retries=3, call_timeout_s=BRIEF_S)
    with pytest.raises(UpstreamTimeoutError, match=r"did not answer within 0\.3 seconds"):
        await soon(provider.post("/completions", BODY))
    assert world.statuses == ["timeout"]
    await server.until(lambda: server.connections == 0)


@pytest.mark.parametrize("behaviour", HANGS.values(), ids=HANGS)
async def test_another_base_url_has_its_turn_before_a_hung_one_has_used_all_time(
    world: World, behaviour: Behaviour
) -> None:
    hung, well = await world.server(otherwise=behaviour), await world.server()
    provider = await world.provider(hung, well, call_timeout_s=1.0)
    affinity = next(a for a in range(99) if provider._endpoints.choose(a).url == hung.url)  # type: ignore[union-attr]
    assert await soon(provider.post("/completions", BODY, affinity=affinity)) == ANSWER
    assert world.statuses == ["timeout", "200"]


async def test_a_call_waits_for_no_retry_that_would_come_too_late(world: World) -> None:
    storm = answer({"error": {"message": "slow down"}}, 429, retry_after="20")
    provider = await world.provider(await world.server(otherwise=storm), call_timeout_s=50)
    with pytest.raises(UpstreamError, match="slow down"):
        await soon(provider.post("/completions", BODY))
    assert len(world.time.slept) == 2, "a third pause would end after 60 s"


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 408, 413, 422])
async def test_a_refusal_is_final(world: World, status: int) -> None:
    server = await world.server(otherwise=answer({"error": {"message": "no"}}, status, location="http://127.0.0.1:1/"))
    provider = await world.provider(server)
    with pytest.raises(UpstreamError, match=str(status)):
        await soon(provider.post("/completions", BODY))
    assert len(server.calls) == 1
    assert world.time.slept == []
    assert provider.available, "it is alive"


BOMB = answer(gzip.compress(b" " * 10**6), content_encoding="gzip")


async def test_a_packed_answer_is_read_although_none_was_asked_for(world: World) -> None:
    packed = answer(gzip.compress(json.dumps(ANSWER).encode()), content_encoding="gzip")
    assert await soon((await world.provider(await world.server(packed))).post("/completions", BODY)) == ANSWER


async def test_no_cookie_is_kept(world: World) -> None:
    """One that is not ASCII could not be sent, and each later call would fail of it."""
    server = await world.server(answer(set_cookie="a=b"), answer(set_cookie="é=☃"))
    provider = await world.provider(server)
    for _ in range(3):
        assert await soon(provider.post("/completions", BODY)) == ANSWER
    assert all("cookie" not in call.headers for call in server.calls)


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/", "mailto:x", "http://[", "//[::1", ""])
async def test_a_redirect_is_not_followed(world: World, target: str) -> None:
    server = await world.server(otherwise=answer({}, 301, location=target))
    provider = await world.provider(server, max_retries=0)
    with pytest.raises(UpstreamError, match=r"redirect|301|closed"):
        await soon(provider.post("/completions", BODY))
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    "behaviour", [answer(b" " * 2000), misbehaving.drip, BOMB], ids=["at once", "slowly", "packed"]
)
async def test_an_answer_without_end_is_refused(world: World, behaviour: Behaviour) -> None:
    server = await world.server(otherwise=behaviour)
    provider = await world.provider(server, max_answer_bytes=10)
    with pytest.raises(UpstreamError, match="more than 10 bytes"):
        await soon(provider.post("/completions", BODY))
    assert len(server.calls) == 1, "it would be as long again"
    await server.until(lambda: server.connections == 0)


@pytest.mark.parametrize(("asked", "least"), [("7", 7.0), ("86400", MAX_RETRY_AFTER_S), ("0", 0.0)])
async def test_retry_after_is_honoured_within_bounds(world: World, asked: str, least: float) -> None:
    storm = answer({"error": {"message": "slow down"}}, 429, retry_after=asked)
    provider = await world.provider(await world.server(storm, storm), call_timeout_s=100)
    assert await soon(provider.post("/completions", BODY)) == ANSWER
    assert len(world.time.slept) == 2
    assert all(least <= pause <= least + 8 for pause in world.time.slept)


async def test_a_storm_of_429_never_opens_the_breaker(world: World) -> None:
    provider = await world.provider(await world.server(otherwise=OVERLOAD["429"]), breaker_failures=1)
    for _ in range(3):
        with pytest.raises(UpstreamError, match=r"rate-limits this server \(429\): slow down"):
            await soon(provider.post("/completions", BODY))
    assert provider.available


async def test_a_restart_on_the_same_port_is_survived(world: World) -> None:
    """Dead while the call pauses for the first time, back when it pauses for the second."""
    server = await world.server(misbehaving.drop)
    provider = await world.provider(server)
    steps = iter([server.kill, server.start])

    async def next_step() -> None:
        await next(steps)()

    world.time.during_sleep = next_step
    assert await soon(provider.post("/completions", BODY)) == ANSWER
    assert world.statuses == ["dropped", "unreachable", "200"]


async def test_a_connection_that_died_idle_costs_at_most_a_retry(world: World) -> None:
    server = await world.server()
    provider = await world.provider(server)
    for _ in range(3):
        assert await soon(provider.post("/completions", BODY)) == ANSWER
        await server.kill()
        await server.start()


async def test_nobody_there(world: World) -> None:
    server = await world.server()
    provider = await world.provider(server, max_retries=1)
    await server.kill()
    with pytest.raises(UpstreamError, match="cannot be reached"):
        await soon(provider.post("/completions", BODY))
    assert world.statuses == ["unreachable", "unreachable"]
    await server.start()


async def test_a_name_that_does_not_exist(world: World) -> None:
    provider = await world.provider(base_url="http://no-such-host.invalid/v1", max_retries=0)
    with pytest.raises(UpstreamError, match="cannot be reached"):
        await soon(provider.get("/models"))


async def test_before_the_start_and_after_the_stop_it_is_unavailable(world: World) -> None:
    provider = await world.provider(await world.server())
    assert provider.available
    await provider.stop()
    assert not provider.available
    with pytest.raises(UnavailableError):
        await soon(provider.get("/models"))
    await provider.stop()


async def test_a_body_that_cannot_be_said_in_json_is_our_bug(world: World) -> None:
    server = await world.server()
    provider = await world.provider(server)
    with pytest.raises(ValueError, match="JSON"):
        await provider.post("/completions", {"temperature": float("nan")})
    assert await soon(provider.post("/completions", {"prompt": "half a pair: \ud800"})) == ANSWER
    assert server.calls[0].body == {"prompt": "half a pair: \ud800"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_this_machine_is_not_asked_for_through_a_proxy(
    world: World, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """The proxy would be sent our key, and would look for the provider on its own machine."""
    server, proxy = await world.server(), await world.server()
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    provider = await world.provider(base_url=server.url.replace("127.0.0.1", host))
    assert await soon(provider.post("/completions", BODY)) == ANSWER
    assert not proxy.calls


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_choice_that_the_provider_gave_up_is_drawn_again(world: World, streamed: bool) -> None:
    """vLLM ends what it is drawing so when it is stopped; a shorter chunk would be another answer."""
    aborted = {"choices": [{"index": 0, "text": "abou", "finish_reason": "abort"}]}
    provider = await world.provider(await world.server(answer(aborted), answer()))
    if streamed:
        assert (await soon(provider.stream("/completions", BODY, Events))).seen == [ANSWER]
    else:
        assert await soon(provider.post("/completions", BODY)) == ANSWER
    assert world.statuses == ["dropped", "200"]


class Events:
    """Keeps the events of a stream."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def feed(self, event: dict[str, Any], /) -> None:
        self.seen.append(event)
