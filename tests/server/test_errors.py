"""The table of errors in `docs/api.md`, row by row, as clients see it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import httpx
import pytest

from server.settings.config import ServerConfig
from tests.server.conftest import Connect
from tests.server.fake_engine import FakeEngine, answering
from w2s_core.errors import (
    ConfigurationError,
    ContextLengthError,
    DeadlineError,
    OverloadedError,
    RequestError,
    UnavailableError,
    UnknownModelError,
    UpstreamContextLengthError,
    UpstreamError,
    UpstreamTimeoutError,
    WorkerError,
)

PATH = "/v1/completions"
BODY = {"model": "plain", "prompt": "x"}
INVALID = "invalid_request_error"


def check(response: httpx.Response, status: int, kind: str, code: str | None, param: str | None = None) -> str:
    """Checks all fields of an error; returns its message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert int(response.headers["openai-processing-ms"]) >= 0
    body = response.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"], error["param"]) == (kind, code, param)
    assert isinstance(error["message"], str)
    assert error["message"]
    return str(error["message"])


FROM_THE_ENGINE = [
    (RequestError("no", "n"), 400, INVALID, None, "n"),
    (ContextLengthError(128, 100, 50, "max_tokens"), 400, INVALID, "context_length_exceeded", "max_tokens"),
    (UnknownModelError("x"), 404, INVALID, "model_not_found", "model"),
    (OverloadedError("full", 3), 429, "rate_limit_exceeded", "rate_limit_exceeded", None),
    (UnavailableError("no worker", 7), 503, "service_unavailable", "service_unavailable", None),
    (DeadlineError("too long"), 504, "timeout", "timeout", None),
    (UpstreamError("they failed"), 502, "upstream_error", "upstream_error", None),
    (UpstreamTimeoutError("they hang"), 504, "upstream_error", "upstream_error", None),
    (UpstreamContextLengthError("they say no"), 400, INVALID, "context_length_exceeded", None),
    (WorkerError("device lost"), 500, "internal_error", "internal_error", None),
    (ConfigurationError("late"), 500, "internal_error", "internal_error", None),
    (ValueError("secret detail"), 500, "internal_error", "internal_error", None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "status", "kind", "code", "param"), FROM_THE_ENGINE, ids=lambda v: type(v).__name__)
async def test_what_the_engine_raises_before_the_first_event(
    connect: Connect, error: Exception, status: int, kind: str, code: str, param: str | None, stream: bool
) -> None:
    client = await connect(FakeEngine([error]))
    check(await client.post(PATH, json={**BODY, "stream": stream}), status, kind, code, param)


async def test_gateways_recognise_a_prompt_that_is_too_long(connect: Connect) -> None:
    client = await connect(FakeEngine([ContextLengthError(128, 100, 50, "max_tokens")]))
    message = (await client.post(PATH, json=BODY)).json()["error"]["message"]
    assert "This model's maximum context length is 128 tokens" in message


@pytest.mark.parametrize(("error", "seconds"), [(OverloadedError("full", 3), "3"), (UnavailableError("none", 7), "7")])
async def test_retry_after_is_set(connect: Connect, error: Exception, seconds: str) -> None:
    client = await connect(FakeEngine([error]))
    assert (await client.post(PATH, json=BODY)).headers["retry-after"] == seconds


async def test_our_bug_shows_the_requests_id_and_nothing_else(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    client = await connect(FakeEngine([ValueError("secret detail")]))
    with caplog.at_level(logging.ERROR):
        response = await client.post(PATH, json=BODY, headers={"x-request-id": "mine-1"})
    message = check(response, 500, "internal_error", "internal_error")
    assert "mine-1" in message
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert len(caplog.records) == 1, "logged once"
    record = caplog.records[0]
    assert "mine-1" in record.getMessage()
    assert record.exc_info is not None
    assert "secret detail" in str(record.exc_info[1])


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b'{"model": ', "application/json"),
        (b"", "application/json"),
        (b"[]", "application/json"),
        (b"null", "application/json"),
        (b'"\xff"', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"model":"plain","prompt":"x","seed":' + b"9" * 5000 + b"}", "application/json"),
        (b'{"model":"plain","prompt":"x"}', "application/x-www-form-urlencoded"),
        (b'{"model":"plain","prompt":"x"}', "text/plain"),
    ],
)
async def test_a_body_that_is_no_json_object(connect: Connect, content: bytes, content_type: str) -> None:
    client = await connect()
    check(await client.post(PATH, content=content, headers={"content-type": content_type}), 400, INVALID, None)


@pytest.mark.parametrize(
    ("content", "content_type", "message"),
    [
        (b"", "application/json", "The body is empty or null: send a JSON object."),
        (b"", None, "The body is empty or null: send a JSON object."),
        (b"null", "application/json", "The body is empty or null: send a JSON object."),
        (b"[]", "application/json", "The body must be a JSON object, not an array."),
        (b'"x"', "application/json", "The body must be a JSON object, not a string."),
        (b"3", "application/json", "The body must be a JSON object, not a number."),
        (b"true", "application/json", "The body must be a JSON object, not a boolean."),
        (b"{}", "text/plain", "The body must be sent with `Content-Type: application/json`."),
        (b"{}", None, "The body must be sent with `Content-Type: application/json`."),
    ],
)
@pytest.mark.parametrize("path", [PATH, "/tokenize"])
async def test_what_is_wrong_with_the_whole_body(
    connect: Connect, path: str, content: bytes, content_type: str | None, message: str
) -> None:
    client = await connect()
    headers = {} if content_type is None else {"content-type": content_type}
    assert check(await client.post(path, content=content, headers=headers), 400, INVALID, None) == message


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
async def test_numbers_that_json_does_not_have(connect: Connect, value: str) -> None:
    client = await connect()
    content = f'{{"model":"plain","prompt":"x","temperature":{value}}}'
    response = await client.post(PATH, content=content, headers={"content-type": "application/json"})
    check(response, 400, INVALID, None, "temperature")


async def test_a_name_that_is_not_text_can_still_be_refused(connect: Connect) -> None:
    """Half a surrogate pair cannot be encoded as UTF-8, and the message quotes it."""
    client = await connect()
    for content in (rb'{"model":"plain","prompt":"x","\ud800":1}', rb'{"model":"\ud800","prompt":"x"}'):
        response = await client.post(PATH, content=content, headers={"content-type": "application/json"})
        assert response.status_code in (400, 404)


@pytest.mark.parametrize("path", ["/v2", "/v1", "/v1/nothing", "/v1/completions/", "/v2/models"])
async def test_unknown_route(connect: Connect, path: str) -> None:
    client = await connect()
    check(await client.get(path), 404, INVALID, "not_found")


@pytest.mark.parametrize(("method", "path"), [("GET", PATH), ("POST", "/v1/models"), ("DELETE", "/health")])
async def test_wrong_method(connect: Connect, method: str, path: str) -> None:
    client = await connect()
    response = await client.request(method, path)
    check(response, 405, INVALID, "method_not_allowed")
    assert response.headers["allow"]


async def test_unknown_model(connect: Connect) -> None:
    client = await connect()
    for response in (await client.post(PATH, json={**BODY, "model": "no"}), await client.get("/v1/models/no")):
        message = check(response, 404, INVALID, "model_not_found", "model")
        assert "no" in message


async def test_a_body_over_the_limit(connect: Connect) -> None:
    client = await connect(config=ServerConfig(max_body_bytes=100))

    async def unannounced() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 50

    json_type = {"content-type": "application/json"}
    check(await client.post(PATH, content=b" " * 101, headers=json_type), 413, INVALID, "request_too_large")
    check(await client.post(PATH, content=unannounced(), headers=json_type), 413, INVALID, "request_too_large")
    fits = b'{"model":"plain","prompt":"x"}'.ljust(100)
    assert (await client.post(PATH, content=fits, headers=json_type)).status_code == 200


# API keys


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer ", "Basic one", "one", "Bearer onee", "Bearer öne"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/plain"])
async def test_without_a_right_key(connect: Connect, header: str | None, path: str) -> None:
    client = await connect(config=ServerConfig(api_keys=("one", "two")))
    headers = {} if header is None else {"authorization": header.encode()}
    response = await client.get(path, headers=headers)
    check(response, 401, INVALID, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", [PATH, "/v1/chat/completions"])
async def test_a_key_is_asked_for_before_the_body_is_judged(connect: Connect, path: str) -> None:
    client = await connect(config=ServerConfig(api_keys=("one",)))
    check(await client.post(path, json={}), 401, INVALID, "invalid_api_key")


@pytest.mark.parametrize("key", ["one", "two"])
async def test_every_configured_key_opens(connect: Connect, key: str) -> None:
    client = await connect(config=ServerConfig(api_keys=("one", "two")))
    assert (await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code == 200


async def test_probes_need_no_key(connect: Connect) -> None:
    client = await connect(config=ServerConfig(api_keys=("one",)))
    for path in ("/health", "/ready", "/openapi.json"):
        assert (await client.get(path)).status_code == 200


# Headers


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/nothing"])
@pytest.mark.parametrize("asked", ["a", "req-1:2.3/4_5+6=7@8", "x" * 128])
async def test_a_sane_request_id_is_kept(connect: Connect, path: str, asked: str) -> None:
    client = await connect()
    assert (await client.get(path, headers={"x-request-id": asked})).headers["x-request-id"] == asked


@pytest.mark.parametrize("asked", [None, "", "x" * 129, "two words", "a\tb", "<script>", "é"])
async def test_no_other_is(connect: Connect, asked: str | None) -> None:
    client = await connect()
    headers = {} if asked is None else {"x-request-id": asked.encode()}
    given = [(await client.get("/health", headers=headers)).headers["x-request-id"] for _ in range(2)]
    assert given[0] != given[1]
    assert asked not in given


async def test_a_stream_has_the_headers_too(connect: Connect) -> None:
    client = await connect()
    response = await client.post(PATH, json={**BODY, "stream": True}, headers={"x-request-id": "mine"})
    assert response.headers["x-request-id"] == "mine"
    assert int(response.headers["openai-processing-ms"]) >= 0
    assert response.headers["content-type"].startswith("text/event-stream")


# After the 200


async def test_a_late_failure_is_an_event_and_then_done(connect: Connect) -> None:
    def late(request: object) -> list[object]:
        return [answering(request)[0], DeadlineError("time is up")]  # type: ignore[arg-type]

    client = await connect(FakeEngine(late))  # type: ignore[arg-type]
    response = await client.post(PATH, json={**BODY, "stream": True})
    assert response.status_code == 200
    frames = response.text.split("\n\n")
    assert frames[0].startswith('data: {"id"')
    assert frames[1] == (
        'data: {"error": {"message": "time is up", "type": "timeout", "param": null, "code": "timeout"}}'
    )
    assert frames[2:] == ["data: [DONE]", ""]


async def test_a_providers_fault_is_logged_without_a_trace(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    client = await connect(FakeEngine([UpstreamError("they failed")]))
    with caplog.at_level(logging.WARNING):
        response = await client.post(PATH, json=BODY, headers={"x-request-id": "mine-1"})
    assert check(response, 502, "upstream_error", "upstream_error") == "they failed"
    assert [(record.getMessage(), record.exc_info) for record in caplog.records] == [
        ("request mine-1 failed upstream: they failed", None)
    ]


async def test_a_late_bug_shows_the_requests_id_only(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    def late(request: object) -> list[object]:
        return [answering(request)[0], KeyError("secret")]  # type: ignore[arg-type]

    client = await connect(FakeEngine(late))  # type: ignore[arg-type]
    response = await client.post(PATH, json={**BODY, "stream": True}, headers={"x-request-id": "mine"})
    assert "mine" in response.text.split("\n\n")[1]
    assert "secret" not in response.text
    assert len(caplog.records) == 1


async def test_a_failure_without_streaming_keeps_its_status_however_late(connect: Connect) -> None:
    def late(request: object) -> list[object]:
        return [answering(request)[0], DeadlineError("time is up")]  # type: ignore[arg-type]

    client = await connect(FakeEngine(late))  # type: ignore[arg-type]
    check(await client.post(PATH, json=BODY), 504, "timeout", "timeout")
