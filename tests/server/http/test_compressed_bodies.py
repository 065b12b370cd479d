"""Compressed request bodies: read within the body limit, which holds for what they inflate to."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from server.settings.config import ServerConfig
from tests.server.conftest import Connect, Serve
from tests.server.fake_engine import FakeEngine
from tests.server.test_errors import BODY, INVALID, PATH, check
from w2s_core.types import TextPrompt

JSON = json.dumps(BODY).encode()
LIMIT = 1000


def raw_gzip(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


async def post(client: httpx.AsyncClient, content: Any, encoding: str, path: str = PATH) -> httpx.Response:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    return await client.post(path, content=content, headers=headers)


async def dripped(content: bytes) -> AsyncIterator[bytes]:
    for byte in content:
        yield bytes([byte])


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("gzip", raw_gzip(JSON)),
        ("GZIP", raw_gzip(JSON)),
        ("x-gzip", raw_gzip(JSON)),
        ("gzip", raw_gzip(JSON[:9]) + raw_gzip(b"") + raw_gzip(JSON[9:])),  # a file may have several members
        ("deflate", zlib.compress(JSON)),
        ("identity", JSON),
        ("", JSON),
    ],
)
@pytest.mark.parametrize("drips", [False, True])
async def test_a_compressed_body_is_read(connect: Connect, encoding: str, content: bytes, drips: bool) -> None:
    engine = FakeEngine()
    client = await connect(engine)
    assert (await post(client, dripped(content) if drips else content, encoding)).status_code == 200
    assert engine.requests[0].prompts == (TextPrompt("x"),)


async def test_it_is_read_from_a_real_socket_and_streamed(serve: Serve) -> None:
    url = await serve()
    async with httpx.AsyncClient(base_url=url) as client:
        response = await post(client, raw_gzip(json.dumps(BODY | {"stream": True}).encode()), "gzip")
    assert response.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    "content",
    [
        JSON,
        raw_gzip(JSON)[:-9],
        raw_gzip(JSON)[:-1],
        raw_gzip(JSON) + b"x",
        raw_gzip(JSON)[:20] + b"x" + raw_gzip(JSON)[21:],
        raw_gzip(JSON)[:2],
    ],
)
async def test_what_is_not_gzip_is_told_so(connect: Connect, content: bytes) -> None:
    message = check(await post(await connect(), content, "gzip"), 400, INVALID, None)
    assert message == "The body is not valid gzip, which its `Content-Encoding` says."


@pytest.mark.parametrize("content", [b'{"model": "\xe9"}', b"[" * 100_000])
async def test_text_that_is_no_utf_8_is_told_so(connect: Connect, content: bytes) -> None:
    """Windows PowerShell sends Latin-1."""
    client = await connect()
    for compressed in (False, True):
        body = raw_gzip(content) if compressed else content
        message = check(await post(client, body, "gzip" if compressed else ""), 400, INVALID, None)
        assert message == "The body is not valid JSON: it must be UTF-8, and not be nested too deeply."


async def test_nothing_at_all_is_empty(connect: Connect) -> None:
    assert "empty" in check(await post(await connect(), b"", "gzip"), 400, INVALID, None)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress", "none"])
async def test_other_encodings_are_refused_by_name(connect: Connect, encoding: str) -> None:
    response = await post(await connect(), JSON, encoding)
    message = check(response, 415, INVALID, "unsupported_media_type")
    assert "Content-Encoding" in message
    assert encoding in message
    assert response.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("drips", [False, True])
async def test_the_limit_holds_for_what_a_body_inflates_to(connect: Connect, encoding: str, drips: bool) -> None:
    client = await connect(config=ServerConfig(max_body_bytes=LIMIT))
    compress = raw_gzip if encoding == "gzip" else zlib.compress
    fits, bomb = compress(JSON.ljust(LIMIT)), compress(b" " * 200_000)
    assert len(bomb) < LIMIT
    assert (await post(client, dripped(fits) if drips else fits, encoding)).status_code == 200
    for content in (compress(JSON.ljust(LIMIT + 1)), bomb):
        response = await post(client, dripped(content) if drips else content, encoding)
        check(response, 413, INVALID, "request_too_large")


async def test_a_bomb_is_never_inflated_beyond_the_limit(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    create = zlib.decompressobj

    class Watched:
        def __init__(self, wbits: int) -> None:
            self._inner = create(wbits)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def decompress(self, data: bytes, max_length: int) -> bytes:
            out: bytes = self._inner.decompress(data, max_length)
            sizes.append(len(out))
            return out

    monkeypatch.setattr("server.http.compression.zlib.decompressobj", Watched)
    client = await connect(config=ServerConfig(max_body_bytes=10_000))
    members = b"".join(raw_gzip(b" " * 3_000_000) for _ in range(3))
    check(await post(client, members, "gzip"), 413, INVALID, "request_too_large")
    assert sum(sizes) <= 10_001


async def test_a_stranger_is_refused_before_the_body_is_inflated(connect: Connect) -> None:
    client = await connect(config=ServerConfig(api_keys=("one",)))
    for encoding in ("gzip", "br"):
        check(await post(client, JSON, encoding), 401, INVALID, "invalid_api_key")
