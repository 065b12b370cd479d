"""HTTP as bytes on a socket, for requests that no client library would send."""

from __future__ import annotations

import io
import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from tests.surface.conftest import KEY

COMPLETIONS, CHAT, TOKENIZE = "/v1/completions", "/v1/chat/completions", "/tokenize"
FINE = b'{"model":"smollm2","prompt":"x","max_tokens":2}'
SECONDS = 60  # a server that neither answers nor closes has failed


@dataclass(frozen=True)
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        return dict(json.loads(self.body)["error"])


class _Received(io.BytesIO):
    """A stand-in for the socket of `HTTPResponse`, from which consecutive responses are read."""

    def makefile(self, _: str) -> _Received:
        return self

    def close(self) -> None:
        pass


def post(path: str, body: bytes, *headers: str, close: bool = True) -> bytes:
    """A request with a body. `headers`, if given, replace Content-Type and Content-Length."""
    told = headers or ("Content-Type: application/json", f"Content-Length: {len(body)}")
    return request("POST", path, *told, close=close) + body


def request(method: str, target: str, *headers: str, close: bool = True, version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: test", f"Authorization: Bearer {KEY}", *headers]
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


def talk(url: str, *parts: bytes, method: str = "POST", leave: bool = False) -> list[Answered]:
    """Sends the parts, one write each, and reads until the server closes. `leave` shuts down our side after sending."""
    where = urlsplit(url)
    received = _Received()
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=SECONDS) as connection:
        with suppress(OSError):  # it may have answered and closed before all was sent
            for part in parts:
                connection.sendall(part)
            if leave:
                connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while data := connection.recv(1 << 16):
                received.write(data)
    received.seek(0)
    return list(_parsed(received, method))


def _parsed(received: _Received, method: str) -> Any:
    while True:
        response = HTTPResponse(received, method=method)  # type: ignore[arg-type]
        try:
            response.begin()
            body = response.read()
        except HTTPException:
            return
        yield Answered(response.status, {k.lower(): v for k, v in response.getheaders()}, body)


def one(url: str, *parts: bytes, method: str = "POST") -> Answered:
    """The only response to one request."""
    [answered] = talk(url, *parts, method=method)
    return answered


def chatting(field: bytes) -> bytes:
    """The body of a chat request with one more field."""
    return b'{"model":"smollm2","max_tokens":2,"messages":[{"role":"user","content":"x"}],' + field + b"}"


def check_refusal(answered: Answered, *statuses: int) -> None:
    """Checks that a response is an error in OpenAI's format."""
    assert 400 <= answered.status < 500, answered
    assert not statuses or answered.status in statuses, answered
    assert set(answered.error) == {"message", "type", "param", "code"}, answered
    assert answered.headers["x-request-id"]
