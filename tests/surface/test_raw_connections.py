"""Malicious headers, request lines and connections are refused; unusual but valid ones work."""

from __future__ import annotations

import gzip

import pytest

from tests.surface.conftest import MOST_BYTES
from tests.surface.raw import CHAT, COMPLETIONS, FINE, TOKENIZE, check_refusal, one, post, request, talk

JSON_TYPE = "Content-Type: application/json"
PATHS = pytest.mark.parametrize("path", [COMPLETIONS, CHAT, TOKENIZE, "/detokenize"])


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (None, 400),
        ("application/json; charset=utf-8", 200),
        ('application/json; charset="latin-1"', 200),  # JSON is UTF-8, whatever a header says
        ("APPLICATION/JSON", 200),
        ("application/vnd.openai+json", 200),
        ("text/plain", 400),
        ("application/x-www-form-urlencoded", 400),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=x", 400),
        ("application/octet-stream", 400),
        ("json", 400),
        (";", 400),
        ("application/json\x00", 400),
        ("\x80\xff", 400),
    ],
)
def test_content_types(server: str, kind: str | None, status: int) -> None:
    told = [] if kind is None else [f"Content-Type: {kind}"]
    answered = one(server, post(COMPLETIONS, FINE, *told, f"Content-Length: {len(FINE)}"))
    assert answered.status == status, answered
    if status != 200:
        check_refusal(answered)


def test_what_is_compressed_is_read_within_the_limit(server: str) -> None:
    for content, status in ((FINE, 200), (b" " * (MOST_BYTES + 1), 413)):
        body = gzip.compress(content, mtime=0)
        head = (JSON_TYPE, f"Content-Length: {len(body)}", "Content-Encoding: gzip")
        assert one(server, post(COMPLETIONS, body, *head)).status == status
    check_refusal(one(server, post(COMPLETIONS, FINE, JSON_TYPE, "Content-Encoding: br")), 415)


@PATHS
def test_bodies_over_the_limit(server: str, path: str) -> None:
    large = b" " * (MOST_BYTES + 1)
    check_refusal(one(server, post(path, large)), 413)
    check_refusal(one(server, post(path, b"", JSON_TYPE, f"Content-Length: {10**18}")), 413)
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(large), large)
    check_refusal(one(server, post(path, chunked, JSON_TYPE, "Transfer-Encoding: chunked")), 413)


def test_a_body_in_chunks(server: str) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in FINE) + b"0\r\n\r\n"
    assert one(server, post(COMPLETIONS, chunks, JSON_TYPE, "Transfer-Encoding: chunked")).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: -1"],
        ["Content-Length: abc"],
        ["Content-Length: +5"],
        ["Content-Length: 0x10"],
        ["Content-Length: 5, 6"],
        ["Content-Length: 5", "Content-Length: 6"],
        [f"Content-Length: {10**30}"],
        [f"Content-Length: {'9' * 5000}"],
        ["Content-Length: \u0661"],
        ["Transfer-Encoding: gzip"],
        ["Transfer-Encoding: chunked, chunked"],
        ["Bad Header: x"],
        ["NoColon"],
        [": empty"],
        ["X: a\x00b"],
        [" Folded: x"],
        ["Long: " + "x" * 200_000],
        [f"H{number}: {'x' * 100}" for number in range(2000)],
        ["Host: another"],
    ],
    ids=lambda headers: headers[0][:30],
)
def test_headers_that_are_none(server: str, headers: list[str]) -> None:
    check_refusal(one(server, post(COMPLETIONS, FINE, JSON_TYPE, *headers)), 400, 413, 431)


def test_both_lengths_at_once_are_no_way_to_smuggle(server: str) -> None:
    """Request smuggling: a proxy that uses Content-Length must not see one request where the server sees two."""
    inner = request("GET", "/v1/models")
    body = b"0\r\n\r\n" + inner
    answers = talk(
        server, post(COMPLETIONS, body, JSON_TYPE, f"Content-Length: {len(body)}", "Transfer-Encoding: chunked")
    )
    assert len(answers) == 1
    check_refusal(answers[0], 400)


def test_many_headers_and_odd_ones_that_are_fine(server: str) -> None:
    many = [f"X-{number}: {number}" for number in range(60)]
    odd = ["X-Empty:", "X-Latin: \xe9", "X-Request-Id: \x80", "Cookie: a=b; c", "Range: bytes=0-1", "If-None-Match: *"]
    answered = one(server, request("GET", "/v1/models", *many, *odd), method="GET")
    assert answered.status == 200


def test_expecting_to_be_asked_for_the_body(server: str) -> None:
    head = (JSON_TYPE, f"Content-Length: {len(FINE)}", "Expect: 100-continue")
    assert one(server, post(COMPLETIONS, FINE, *head)).status == 200


# Lines, connections, methods, paths


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET  /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",  # no Host
        b"GET /he alth HTTP/1.1\r\nHost: x\r\n\r\n",
        b"G\x00T /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 300,  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"A" * 200_000,
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_is_no_http(server: str, data: bytes) -> None:
    for answered in talk(server, data, leave=True):
        check_refusal(answered)


@pytest.mark.parametrize("cut", [1, 20, 60, 150, len(post(COMPLETIONS, FINE)) - 1])
def test_a_request_that_breaks_off_takes_nobody_with_it(server: str, cut: int) -> None:
    for answered in talk(server, post(COMPLETIONS, FINE)[:cut], leave=True):
        check_refusal(answered, 400)


def test_lengths_that_lie(server: str) -> None:
    too_short = post(COMPLETIONS, FINE, JSON_TYPE, f"Content-Length: {len(FINE) - 5}", close=False)
    first, *rest = talk(server, too_short, leave=True)
    check_refusal(first, 400)
    for answered in rest:  # what stands behind the body is no request
        check_refusal(answered, 400)
    talk(server, post(COMPLETIONS, FINE, JSON_TYPE, f"Content-Length: {len(FINE) + 5}"), leave=True)
    bad_chunk = b"zz\r\n" + FINE + b"\r\n0\r\n\r\n"
    check_refusal(one(server, post(COMPLETIONS, bad_chunk, JSON_TYPE, "Transfer-Encoding: chunked")), 400)


def test_requests_in_one_write_are_answered_in_order(server: str) -> None:
    several = [
        request("GET", "/health", "X-Request-Id: 1", close=False),
        post(COMPLETIONS, FINE, JSON_TYPE, f"Content-Length: {len(FINE)}", "X-Request-Id: 2", close=False),
        post(COMPLETIONS, b"{", JSON_TYPE, "Content-Length: 1", "X-Request-Id: 3", close=False),
        request("GET", "/v1/models", "X-Request-Id: 4"),
    ]
    answers = talk(server, b"".join(several))
    assert [(a.headers["x-request-id"], a.status) for a in answers] == [("1", 200), ("2", 200), ("3", 400), ("4", 200)]


def test_http_1_0(server: str) -> None:
    assert one(server, b"GET /health HTTP/1.0\r\n\r\n", method="GET").status == 200
    head = f"Content-Type: application/json\r\nContent-Length: {len(FINE)}"
    answered = one(server, request("POST", COMPLETIONS, *head.split("\r\n"), version="1.0") + FINE)
    assert answered.status == 200


@pytest.mark.parametrize(
    "path", [COMPLETIONS, CHAT, TOKENIZE, "/v1/models", "/v1/models/smollm2", "/health", "/metrics"]
)
@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "FOO", "get"])
def test_methods_that_nothing_has(server: str, path: str, method: str) -> None:
    answered = one(server, request(method, path), method=method)
    if method == "HEAD" and path not in (COMPLETIONS, CHAT, TOKENIZE):
        assert answered.status == 200
        return
    assert answered.status == 405
    assert answered.headers["allow"]
    if method != "HEAD":
        check_refusal(answered)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "....//x",
        "%00",
        "%ff%fe",
        "%ed%a0%80",
        "%E2%80%AE",
        "a" * 8000,
        "?x",
        "smollm2/",
        "/smollm2",
        "smollm2%20",
        "%",
        "%zz",
        "http://example.com/",
        "<script>alert(1)</script>",
    ],
)
def test_names_of_models_that_look_like_something_else(server: str, name: str) -> None:
    check_refusal(one(server, request("GET", f"/v1/models/{name}"), method="GET"), 404)


@pytest.mark.parametrize(
    "target", ["*", "http://elsewhere/health", "//health", "/v1//models", "/..", "/%2e%2e/", "health"]
)
def test_targets_that_are_no_path_of_ours(server: str, target: str) -> None:
    for answered in talk(server, request("GET", target), method="GET"):
        if answered.status != 200:
            check_refusal(answered, 400, 404)


@pytest.mark.parametrize("path", ["/", COMPLETIONS, "/metrics"])
def test_nobody_speaks_anything_but_http_here(server: str, path: str) -> None:
    upgrade = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: " + "A" * 22 + "==",
    ]
    for answered in talk(server, request("GET", path, *upgrade, close=False), leave=True, method="GET"):
        assert 200 <= answered.status < 500
