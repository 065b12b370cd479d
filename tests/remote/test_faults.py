"""Error responses and broken connections become the right faults, and never show the API key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.remote.odd_answers import DATES
from w2s_core.errors import (
    ContextLengthError,
    UpstreamContextLengthError,
    UpstreamError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
)
from w2s_core.remote.exchange import parse
from w2s_core.remote.faults import Fault, FaultClassifier, retry_after_s

KEY = "sk-very-secret-0123456789"
READER = FaultClassifier("llama", "meta/llama", KEY)


def fault(status: int, body: Any = None, **headers: str) -> Fault:
    return READER.from_response(status, httpx.Headers({k.replace("_", "-"): v for k, v in headers.items()}), body)


def said(message: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "code": None}}


@pytest.mark.parametrize(
    ("status", "transient", "unhealthy"),
    [
        (301, False, False), (400, False, False), (401, False, False), (403, False, False), (404, False, False),
        (408, False, False), (413, False, False), (422, False, False), (429, True, False), (500, True, True),
        (502, True, True), (503, True, True), (529, True, True),
    ],
)  # fmt: skip
def test_what_is_tried_again_and_what_speaks_against_the_provider(
    status: int, transient: bool, unhealthy: bool
) -> None:
    found = fault(status, said("no"))
    assert (found.transient, found.unhealthy, found.status) == (transient, unhealthy, str(status))
    final = status in (400, 404, 408, 413, 422)
    assert type(found.error) is (UpstreamRefusedError if final else UpstreamError)
    assert str(status) in str(found.error)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (said("Out of memory"), ": Out of memory"),
        ({"object": "error", "message": "Out of memory"}, ": Out of memory"),
        ({"detail": "Out of memory"}, ": Out of memory"),
        ({"error": "Out of memory"}, ": Out of memory"),
        (said("Out\n of \x1b[31m\u202e  memory\x00"), ": Out of [31m memory"),
        (said("x" * 1000), ": " + "x" * 299 + "…"),
        (None, "."), ("text", "."), ([], "."), ({}, "."), (said(None), "."), (said({"a": 1}), "."), (said(""), "."),
    ],
)  # fmt: skip
def test_its_message_is_passed_on_in_one_short_line(body: Any, message: str) -> None:
    assert str(fault(500, body).error) == f"The provider of `llama` failed (500){message}"


@pytest.mark.parametrize(
    ("said_by_it", "passed_on"),
    [
        ("The model `/models/llama-70b/` does not exist.", "The model `[path]` does not exist."),
        ("No such file: '/usr/lib/python3/dist-packages/x.py', line 3", "No such file: '[path]', line 3"),
        ("at ~/llama/x or C:\\models\\x.bin", "at [path] or [path]"),
        ("POST /v1/chat/completions to http://host:8000/v1/x failed", None),
        ("n/a, and/or 1/2, application/json, 3 / 4", None),
        ("prompt is too long: 9 > 8", None),
    ],
)
def test_no_path_of_its_machine_is_passed_on(said_by_it: str, passed_on: str | None) -> None:
    assert str(fault(400, said(said_by_it)).error).endswith(passed_on or said_by_it)


def test_a_model_whose_name_is_a_path_is_called_as_in_the_configuration() -> None:
    """As vLLM calls what it serves from a folder."""
    classifier = FaultClassifier("llama", "/models", None)
    error = classifier.from_response(404, {}, said("The model `/models` does not exist.")).error
    assert "/models" not in str(error)
    assert "has no model `llama`" in str(error)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
@pytest.mark.parametrize(
    "echo", ["{}", "Authorization: Bearer {}", "{0}{0}", "x" * 290 + "{}", "bearer\n{} ok", "'{}'"]
)
def test_the_key_is_never_passed_on(status: int, echo: str) -> None:
    """Nor its beginning, cut off by the shortening."""
    message = str(fault(status, said(echo.format(KEY))).error)
    assert KEY[:4] not in message


@given(st.text(), st.text())
def test_the_key_is_never_passed_on_whatever_surrounds_it(before: str, after: str) -> None:
    assert KEY not in str(fault(500, said(before + KEY + after)).error)


def test_bearer_tokens_of_others_are_not_passed_on_either() -> None:
    assert "abcdef" not in str(fault(500, said("upstream got Authorization: Bearer abcdef")).error)


def test_a_wrong_model_and_wrong_credentials_are_named() -> None:
    assert "has no model `meta/llama`" in str(fault(404, said("nope")).error)
    for status in (401, 403):
        assert str(fault(status, said("bad")).error) == f"The provider of `llama` rejected our credentials ({status})."


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("context_length_exceeded", "This model's maximum context length is 2048 tokens. However, you requested 9."),
        (400, "This model's maximum context length is 2048 tokens and your request has 3000 input tokens"),
        (None, "Requested token count exceeds the model's maximum context length of 2048 tokens."),
    ],
)
def test_a_prompt_that_is_too_long_for_the_provider_is_the_callers_mistake(code: Any, message: str) -> None:
    found = fault(400, {"error": {"message": message, "code": code}})
    assert isinstance(found.error, UpstreamContextLengthError)
    assert isinstance(found.error, ContextLengthError)
    assert "This model's maximum context length is 2048 tokens" in str(found.error)
    assert not found.transient


def test_without_the_number_the_providers_words_must_do() -> None:
    found = fault(400, {"error": {"message": "too long", "code": "context_length_exceeded"}})
    assert isinstance(found.error, UpstreamContextLengthError)
    assert str(found.error) == "The provider of `llama` says: too long"


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (httpx.ConnectError(KEY), UpstreamError, "unreachable"),
        (httpx.ConnectTimeout(KEY), UpstreamTimeoutError, "unreachable"),
        (httpx.ReadTimeout(KEY), UpstreamTimeoutError, "timeout"),
        (httpx.WriteTimeout(KEY), UpstreamTimeoutError, "timeout"),
        (TimeoutError(KEY), UpstreamTimeoutError, "timeout"),
        (httpx.ReadError(KEY), UpstreamError, "dropped"),
        (httpx.RemoteProtocolError(KEY), UpstreamError, "dropped"),
        (httpx.DecodingError(KEY), UpstreamError, "malformed"),
    ],
)
def test_broken_connections(error: Exception, kind: type[UpstreamError], status: str) -> None:
    found = READER.from_exception(error, 2.5)
    assert type(found.error) is kind
    assert (found.status, found.transient, found.unhealthy) == (status, True, True)
    assert KEY not in str(found.error)


def test_retry_after_in_seconds() -> None:
    assert retry_after_s({"retry-after": " 7 "}) == 7
    assert retry_after_s({"retry-after": "0.5"}) == 0.5
    assert fault(429, None, retry_after="7").retry_after_s == 7
    assert fault(503, None, retry_after="7").retry_after_s == 7


def test_retry_after_as_a_date() -> None:
    ahead = retry_after_s({"retry-after": format_datetime(datetime.now(UTC) + timedelta(minutes=2), usegmt=True)})
    assert ahead is not None
    assert 100 < ahead <= 120
    elsewhere = datetime.now(timezone(timedelta(hours=-5))) + timedelta(minutes=2)
    ahead = retry_after_s({"retry-after": format_datetime(elsewhere)})
    assert ahead is not None
    assert 100 < ahead <= 120, "a date in another time zone"
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:00"}) == 0


TOO_LARGE = ("Wed, 542204311119 Jan 3766 07:28:00", ", 83439074 Jan 1996 99999999999999999999:1:1 GMT")


@pytest.mark.parametrize(
    "value", ["", "soon", "-1", "inf", "nan", "1e9", "٣", "99999999999", "Wed, 99 Oct 2015", *TOO_LARGE]
)
def test_a_retry_after_that_makes_no_sense_is_none(value: str) -> None:
    assert retry_after_s({"retry-after": value}) is None


@given(st.text() | DATES)
def test_no_header_breaks_the_reader(value: str) -> None:
    seconds = retry_after_s({"retry-after": value})
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}', b"\xff\xfe", b"<html>", b'{"a": 1} x',
        b"[" * 100_000, b"9" * 5000, '{"a": 1}'.encode("utf-16"),
    ],
)  # fmt: skip
def test_json_is_read_strictly(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"garbled|NaN|bounds"):
        parse(body)


def test_good_json_is_read() -> None:
    assert parse('{"a": [1, -2.5e3, null, "é"]}'.encode()) == {"a": [1, -2500.0, None, "é"]}
