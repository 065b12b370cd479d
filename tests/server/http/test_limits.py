"""Header and connection limits, CORS, the admin port, and TLS."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from server.http.tls import tls_context
from server.serve import ready_message
from server.settings.config import ServerConfig, load_settings
from tests.replica import replica
from tests.server.conftest import Connect, Serve
from tests.server.http.test_slow_clients import Raw, connected, error_of, status_of
from w2s_core.errors import ConfigurationError

SOON = 60  # seconds; only a failing test waits that long
GET = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n"


async def answer_to(raw: Raw, request: bytes) -> bytes:
    raw.writer.write(request)
    return await asyncio.wait_for(raw.reader.read(), SOON)


@pytest.mark.parametrize("whole", [True, False], ids=["at once", "without an end"])
async def test_a_head_that_is_too_long(serve: Serve, whole: bool) -> None:
    async with connected(await serve(config=ServerConfig(max_header_bytes=1000))) as [raw]:
        end = b"\r\nconnection: close\r\n\r\n" if whole else b""
        answer = await answer_to(raw, GET + b"x-long: " + b"x" * 1000 + end)
    assert status_of(answer) == 431
    assert error_of(answer)["code"] == "request_header_fields_too_large"
    assert "1000 bytes" in error_of(answer)["message"]


async def test_a_long_query_is_part_of_the_head(connect: Connect) -> None:
    client = await connect(config=ServerConfig(max_header_bytes=1000))
    assert (await client.get("/v1/models?" + "x" * 1000)).status_code == 431


@pytest.mark.parametrize(("count", "status"), [(6, 200), (7, 431)])
async def test_many_headers(serve: Serve, count: int, status: int) -> None:
    headers = b"".join(b"x-%d: x\r\n" % i for i in range(count - 2))
    async with connected(await serve(config=ServerConfig(max_headers=6))) as [raw]:
        answer = await answer_to(raw, GET + headers + b"connection: close\r\n\r\n")
    assert status_of(answer) == status


@pytest.mark.parametrize(
    "noise", [b"\x16\x03\x01\x02\x00\x01", b"sk-secret\r\n\r\n", b"GET\r\n\r\n", GET + b"sk-secret\r\n\r\n"]
)
async def test_what_is_not_http_is_told_so(serve: Serve, caplog: pytest.LogCaptureFixture, noise: bytes) -> None:
    async with connected(await serve()) as [raw]:
        answer = await answer_to(raw, noise + b"\r\n\r\n")
    assert status_of(answer) == 400
    assert error_of(answer)["type"] == "invalid_request_error"
    assert b"sk-secret" not in answer
    assert "sk-secret" not in caplog.text


async def test_garbage_in_the_middle_of_a_body_ends_the_request(serve: Serve) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    async with connected(await serve()) as [raw]:
        answer = await answer_to(raw, head + b"nonsense\r\n")
    assert status_of(answer) == 400
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_more_connections_than_there_may_be(serve: Serve) -> None:
    url = await serve(config=ServerConfig(max_connections=3))
    async with connected(url, 3) as raws:
        for raw in raws:
            raw.writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert status_of(await raw.reader.readuntil(b"}")) == 200
        async with connected(url) as [fourth]:
            answer = await asyncio.wait_for(fourth.reader.read(), SOON)
        assert status_of(answer) == 503
        assert b"retry-after: 1" in answer
        assert error_of(answer)["code"] == "service_unavailable"
    async with httpx.AsyncClient(base_url=url) as client:
        while (await client.get("/health")).status_code != 200:  # the server must notice first that the others left
            await asyncio.sleep(0.01)


async def test_an_upgrade_is_not_followed(serve: Serve) -> None:
    upgrade = b"connection: upgrade, close\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n"
    async with connected(await serve()) as [raw]:
        answer = await answer_to(raw, GET + upgrade + b"\r\n")
    assert status_of(answer) == 200


# Other origins

ORIGIN = {"origin": "https://app.example.com"}
PREFLIGHT = {
    **ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-stainless-lang",
}


async def test_other_origins_are_not_told_that_they_may(connect: Connect) -> None:
    client = await connect()
    for response in (
        await client.get("/v1/models", headers=ORIGIN),
        await client.options("/v1/chat/completions", headers=PREFLIGHT),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert response.status_code == 405


async def test_named_origins_may(connect: Connect) -> None:
    client = await connect(config=ServerConfig(cors_origins=(ORIGIN["origin"],), api_keys=("sesame",)))
    asked = await client.options("/v1/chat/completions", headers=PREFLIGHT)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == ORIGIN["origin"]
    assert "x-stainless-lang" in asked.headers["access-control-allow-headers"]
    assert asked.headers["x-request-id"]
    refused = await client.get("/v1/models", headers=ORIGIN)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == ORIGIN["origin"], "or a page could not read why"
    assert "x-request-id" in refused.headers["access-control-expose-headers"]
    other = await client.options("/v1/models", headers=PREFLIGHT | {"origin": "https://evil.example.com"})
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-credentials" not in asked.headers


@pytest.mark.parametrize("origin", ["app.example.com", "https://app.example.com/", "https://*.example.com", ""])
def test_an_origin_that_is_none_is_refused(tmp_path: Path, origin: str) -> None:
    (tmp_path / "w2s.yaml").write_text(json.dumps({"server": {"cors_origins": [origin]}}))
    with pytest.raises(ConfigurationError, match=r"server\.cors_origins\.0"):
        load_settings(tmp_path / "w2s.yaml")


# The administrator's port


async def test_metrics_are_at_the_port_of_its_own_only(connect: Connect) -> None:
    client = await connect(config=ServerConfig(admin_port=9999))
    admin = httpx.AsyncClient(transport=client._transport, base_url="http://test:9999")
    found = {
        path: [(await side.get(path)).status_code for side in (client, admin)]
        for path in ("/metrics", "/health", "/ready", "/version", "/v1/models", "/docs", "/openapi.json")
    }
    assert found.pop("/metrics") == [404, 200]
    assert [found.pop(path) for path in ("/health", "/ready", "/version")] == [[200, 200]] * 3
    assert set(map(tuple, found.values())) == {(200, 404)}
    assert (await admin.post("/v1/completions", json={})).json()["error"]["code"] == "not_found"


def test_the_port_of_its_own_is_listened_at_and_said() -> None:
    with replica(SERVER__ADMIN_PORT="0", SERVER__LOG_FORMAT="json") as running:
        [said] = [line for line in running.seen if "Metrics and probes at" in line]
        admin = json.loads(said)["message"].split()[-1]
        assert httpx.get(f"{admin}/metrics", timeout=SOON).text.startswith("# HELP")
        assert httpx.get(f"{running.url}/metrics", timeout=SOON).status_code == 404
        assert httpx.get(f"{admin}/v1/models", timeout=SOON).status_code == 404


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def certified(authority: trustme.CA, folder: Path) -> dict[str, str]:
    """The settings that name a certificate for 127.0.0.1."""
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    return {"tls_certificate": str(folder / "certificate.pem"), "tls_key": str(folder / "key.pem")}


def test_it_speaks_tls(authority: trustme.CA, tmp_path: Path) -> None:
    files = certified(authority, tmp_path)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with replica(**{f"SERVER__{key.upper()}": value for key, value in files.items()}) as running:
        running.run_free()
        assert running.url.startswith("https://")
        with httpx.Client(verify=trusting, base_url=running.url, timeout=SOON) as client:
            body = {"model": "plain", "prompt": "x", "max_tokens": 2, "stream": True}
            with client.stream("POST", "/v1/completions", json=body) as response:
                assert [line for line in response.iter_lines() if line][-1] == "data: [DONE]"
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            httpx.get(f"{running.url}/health", timeout=SOON)
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(running.url.replace("https", "http") + "/health", timeout=SOON)


def test_old_versions_of_tls_are_not_spoken(authority: trustme.CA, tmp_path: Path) -> None:
    context = tls_context(ServerConfig(**certified(authority, tmp_path)))
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert tls_context(ServerConfig()) is None


def test_the_line_to_paste_is_https() -> None:
    assert "curl https://h:1/v1" in ready_message("https://h:1", ["plain"], None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tls_certificate": None}, "tls_key: needs tls_certificate"),
        ({"tls_certificate": "nowhere.pem"}, "server.tls_certificate nowhere.pem"),
        ({"tls_key": None}, "server.tls_certificate "),
        ({"tls_key": "other.pem"}, "server.tls_key "),
        ({"tls_key": "locked.pem"}, "server.tls_key "),
    ],
)
def test_a_certificate_that_cannot_be_used(
    authority: trustme.CA, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    files: dict[str, Any] = certified(authority, tmp_path) | change
    trustme.CA().issue_cert("x").private_key_pem.write_to_path(tmp_path / "other.pem")
    locked = load_pem_private_key((tmp_path / "key.pem").read_bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )
    (tmp_path / "locked.pem").write_bytes(locked)
    if files["tls_key"] in ("other.pem", "locked.pem"):
        files["tls_key"] = tmp_path / files["tls_key"]
    (tmp_path / "w2s.yaml").write_text(json.dumps({"server": files}, default=str))
    with pytest.raises(ConfigurationError) as refusal:
        tls_context(load_settings(tmp_path / "w2s.yaml").server)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
