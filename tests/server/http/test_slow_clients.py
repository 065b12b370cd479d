"""Clients that send or read too slowly are cut after their time-out and delay no other client."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from server.settings.config import ServerConfig
from tests.server.conftest import Serve
from tests.server.fake_engine import FakeEngine
from w2s_core.engine.events import Event, TextCommitted
from w2s_core.telemetry.request_record import RequestRecord
from w2s_core.types import GenerationRequest

SOON = 60  # seconds; only a failing test waits that long
BODY = {"model": "plain", "prompt": "x"}
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n"
SLOW = ServerConfig(request_read_timeout_s=0.3, write_timeout_s=0.3)


class Raw:
    """A raw connection that sends or reads too slowly."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def drip(self, *beginning: bytes) -> bytes:
        """Sends single bytes until the server closes the connection; returns what was received."""
        for part in beginning:
            self.writer.write(part)
        answer = asyncio.create_task(self.reader.read())
        while not answer.done():
            self.writer.write(b"x")
            await asyncio.wait({answer}, timeout=0.02)
        return await answer


@asynccontextmanager
async def connected(url: str, count: int = 1) -> AsyncIterator[list[Raw]]:
    parts = urlsplit(url)
    raws = [Raw(*await asyncio.open_connection(parts.hostname, parts.port)) for _ in range(count)]
    try:
        yield raws
    finally:
        for raw in raws:
            raw.writer.transport.abort()


def status_of(answer: bytes) -> int | None:
    return int(answer.split()[1]) if answer else None


def error_of(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"x-request-id: req_" in head
    assert b"connection: close" in head.lower()
    return json.loads(body)["error"]


async def test_two_hundred_that_drip_hold_up_nobody(serve: Serve) -> None:
    """Half of them stall in the head, half in the body; others are served while all two hundred are connected."""
    url = await serve(config=ServerConfig(request_read_timeout_s=600))
    async with connected(url, 200) as raws, httpx.AsyncClient(base_url=url, timeout=SOON) as client:
        beginnings = [HEAD + b"x-drip: ", HEAD + b"\r\n"]
        dripping = [asyncio.create_task(raw.drip(beginnings[i % 2])) for i, raw in enumerate(raws)]
        answers = await asyncio.gather(*(client.post("/v1/completions", json=BODY) for _ in range(20)))
        assert [answer.status_code for answer in answers] == [200] * 20
        async with client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as response:
            assert [line async for line in response.aiter_lines() if line][-1] == "data: [DONE]"
        assert not any(task.done() for task in dripping), "they are all still there"
        for task in dripping:
            task.cancel()


@pytest.mark.parametrize(
    ("beginning", "status"),
    [
        (b"", 408),
        (HEAD + b"x-drip: ", 408),
        (HEAD + b"\r\n", 408),
        (b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nFFFFF\r\n", 408),
    ],
    ids=["first line", "headers", "body", "chunk"],
)
async def test_whoever_drips_is_told_and_cut(serve: Serve, beginning: bytes, status: int) -> None:
    engine = FakeEngine()
    async with connected(await serve(engine, SLOW)) as [raw]:
        answer = await asyncio.wait_for(raw.drip(beginning), SOON)
    assert status_of(answer) == status
    assert "0.3 seconds" in error_of(answer)["message"]
    assert engine.requests == []


async def test_a_connection_that_says_nothing_is_closed(serve: Serve) -> None:
    async with connected(await serve(config=SLOW)) as [raw]:
        assert await asyncio.wait_for(raw.reader.read(), SOON) == b""


async def test_a_body_that_nobody_waits_for_may_not_drip_either(serve: Serve) -> None:
    """A request refused by its head would otherwise keep its connection for as long as it sends."""
    config = SLOW.model_copy(update={"max_body_bytes": 10})
    async with connected(await serve(config=config)) as [raw]:
        answer = await asyncio.wait_for(raw.drip(HEAD + b"\r\n"), SOON)
    assert status_of(answer) == 413
    assert answer.count(b"HTTP/1.1") == 1


async def test_a_slow_next_request_of_a_connection_is_cut_too(serve: Serve) -> None:
    """The first byte of a request stops uvicorn's time-out for idle connections."""
    async with connected(await serve(config=SLOW)) as [raw]:
        raw.writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert status_of(await raw.reader.readuntil(b"}")) == 200
        answer = await asyncio.wait_for(raw.drip(b"GET /health HTTP/1.1\r\nhost: "), SOON)
    assert status_of(answer) == 408


async def test_a_pipelined_request_that_drips_is_cut_too(serve: Serve) -> None:
    async with connected(await serve(config=SLOW)) as [raw]:
        answer = await asyncio.wait_for(raw.drip(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", HEAD, b"\r\n"), SOON)
    assert [part.split()[0] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"408"]


async def test_answers_may_take_longer_than_requests(serve: Serve) -> None:
    """The read time-out ends with the request's last byte: a search may take longer."""

    class Thinks(FakeEngine):
        async def generate(self, *args: Any) -> Any:
            await asyncio.sleep(3 * SLOW.request_read_timeout_s)
            async for event in super().generate(*args):
                yield event

    async with httpx.AsyncClient(base_url=await serve(Thinks(), SLOW), timeout=SOON) as client:
        assert (await client.post("/v1/completions", json=BODY)).status_code == 200


# Readers


class SpeaksWithoutEnd(FakeEngine):
    """Streams without end to requests whose seed is 1."""

    async def generate(self, request: GenerationRequest, record: RequestRecord | None = None) -> AsyncIterator[Event]:
        if request.sampling.seed != 1:
            async for event in super().generate(request, record):
                yield event
            return
        self.open += 1
        try:
            while True:
                await asyncio.sleep(0)  # as any engine would
                yield TextCommitted(0, "x" * 10_000)
        finally:
            self.open -= 1
            self.closed.set()


async def asks_and_stands_still(url: str, body: dict[str, Any]) -> socket.socket:
    parts = urlsplit(url)
    asking = socket.socket()
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    asking.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(asking, (parts.hostname, parts.port))
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    )
    await loop.sock_sendall(asking, head.encode() + b"\r\n\r\n" + content)
    return asking


async def test_a_reader_that_stops_is_cut_and_its_search_with_it(serve: Serve) -> None:
    engine = SpeaksWithoutEnd()
    with await asks_and_stands_still(await serve(engine, SLOW), {**BODY, "stream": True, "seed": 1}):
        await asyncio.wait_for(engine.closed.wait(), SOON)
    assert engine.open == 0


async def test_others_are_served_while_a_reader_stands_still(serve: Serve) -> None:
    engine = SpeaksWithoutEnd()
    url = await serve(engine, ServerConfig(write_timeout_s=600))
    with await asks_and_stands_still(url, {**BODY, "stream": True, "seed": 1}):
        async with httpx.AsyncClient(base_url=url, timeout=SOON) as client:
            assert (await client.post("/v1/completions", json=BODY)).status_code == 200
            assert engine.open == 1
    await asyncio.wait_for(engine.closed.wait(), SOON)
