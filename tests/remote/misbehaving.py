"""A real HTTP/1.1 server on 127.0.0.1 that misbehaves as scripted; it uses raw sockets, so that it can break HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

SOON = 60  # seconds; only a failing test waits that long
ANSWER = {"choices": [{"text": " yes"}]}


@dataclass(frozen=True)
class Call:
    """What arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


class Connection:
    """One client's connection, as a behaviour uses it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until_client_leaves(self) -> None:
        while await self.reader.read(4096):
            pass

    def reset(self) -> None:
        """Closes with RST: the client loses what it has not read."""
        self.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
        )
        self.writer.transport.abort()


Behaviour = Callable[[Connection, Call], Awaitable[None]]


def answer(body: Any = ANSWER, status: int = 200, **headers: str) -> Behaviour:
    """`body`: bytes as they are, anything else as JSON. `retry_after=` becomes `retry-after:`."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def behave(connection: Connection, call: Call) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(content)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await connection.send("\r\n".join([*lines, "", ""]).encode() + content)

    return behave


def raw(data: bytes) -> Behaviour:
    """Sends this and closes."""

    async def behave(connection: Connection, call: Call) -> None:
        await connection.send(data)
        connection.writer.close()

    return behave


async def drop(connection: Connection, call: Call) -> None:
    connection.writer.close()


async def reset(connection: Connection, call: Call) -> None:
    connection.reset()


async def hang(connection: Connection, call: Call) -> None:
    await connection.until_client_leaves()


async def hang_in_body(connection: Connection, call: Call) -> None:
    await connection.send(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"choices": ')
    await connection.until_client_leaves()


async def drip(connection: Connection, call: Call) -> None:
    """A byte now and then, never the last: no single read ever times out."""
    await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    leaving = asyncio.create_task(connection.until_client_leaves())
    while not leaving.done():
        await connection.send(b" ")
        await asyncio.wait([leaving], timeout=0.02)


half_body = raw(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"choices": [')
half_chunk = raw(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\n{"choices": [')
half_json = raw(b'HTTP/1.1 200 OK\r\n\r\n{"choices": [{"te')  # ends with the connection: only the JSON tells
not_http = raw(b"220 smtp.example ESMTP\r\n")
html = answer(b"<html><title>Login</title>", content_type="text/html")


class MisbehavingProvider:
    """Each call takes the next behaviour of `script`; when there is none, `otherwise`."""

    def __init__(self, *script: Behaviour, otherwise: Behaviour | None = None) -> None:
        self.script = deque(script)
        self.otherwise = otherwise or answer()
        self.calls: list[Call] = []
        self.connections = 0  # open now
        self.busy = 0  # calls being answered now
        self.most_busy = 0
        self._changed = asyncio.Condition()
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    async def start(self) -> None:
        """Again on the same port after `kill`."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """As a process dies: nobody listens, every connection breaks."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self.until(lambda: self.connections == 0)
        await self._server.wait_closed()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON), self._changed:
            await self._changed.wait_for(condition)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        await self._count(connections=1)
        try:
            while not writer.is_closing():
                await self._answer_one(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left
        finally:
            writer.close()
            self._writers.discard(writer)
            await self._count(connections=-1)

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in head[1:-2])}
        content = await reader.readexactly(int(headers.get("content-length", "0")))
        call = Call(method, path, headers, json.loads(content) if content else None)
        self.calls.append(call)
        await self._count(busy=1)
        try:
            behave = self.script.popleft() if self.script else self.otherwise
            await behave(Connection(reader, writer), call)
        finally:
            await self._count(busy=-1)

    async def _count(self, *, connections: int = 0, busy: int = 0) -> None:
        self.connections += connections
        self.busy += busy
        self.most_busy = max(self.most_busy, self.busy)
        async with self._changed:
            self._changed.notify_all()
