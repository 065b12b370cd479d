"""Fuzzing: random bytes, and random JSON values in request bodies."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.surface.raw import CHAT, COMPLETIONS, FINE, chatting, check_refusal, one, post, talk

RANDOMLY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@RANDOMLY
@given(data=st.binary(min_size=1, max_size=300))
def test_any_bytes_as_a_body(server: str, data: bytes) -> None:
    check_refusal(one(server, post(COMPLETIONS, data)))


@RANDOMLY
@given(data=st.binary(min_size=1, max_size=300))
def test_any_bytes_at_all(server: str, data: bytes) -> None:
    for answered in talk(server, data, leave=True):
        check_refusal(answered)


@RANDOMLY
@given(
    places=st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 2), st.binary(min_size=1, max_size=3)), max_size=4
    ),
    path=st.sampled_from([COMPLETIONS, CHAT]),
)
def test_requests_with_some_bytes_changed(server: str, path: str, places: list[tuple[int, int, bytes]]) -> None:
    data = bytearray(post(path, FINE if path == COMPLETIONS else chatting(b'"n":1')))
    for place, how, new in places:
        start = place % len(data)
        data[start : start + (0, 1, len(new))[how]] = new
    for answered in talk(server, bytes(data), leave=True):
        assert answered.status < 500, answered
        if answered.status >= 400:
            check_refusal(answered)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["\ud800", "", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FULL: dict[str, Any] = {
    "model": "smollm2-positive",
    "prompt": "x",
    "max_tokens": 4,
    "n": 1,
    "seed": 1,
    "stop": ["a"],
    "logprobs": 1,
    "echo": False,
    "logit_bias": {"5": 1},
    "stream": False,
    "stream_options": None,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}},
    "guidance": {"pairs": {"positive": 1.0}, "beam_width": 2, "successors": 2, "chunk_length": 2, "trace": True},
    "allowed_token_ids": None,
    "truncate_prompt_tokens": None,
}


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += paths_of(inner, (*path, key))
    return found


@RANDOMLY
@given(changes=st.lists(st.tuples(st.sampled_from(paths_of(FULL)), VALUES), min_size=1, max_size=3))
def test_bodies_with_some_values_changed(server: str, changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    body = json.loads(json.dumps(FULL))
    for path, value in changes:
        part = body
        for key in path[:-1]:
            part = part.get(key) if isinstance(part, dict) else None
        if isinstance(part, dict):
            part[path[-1]] = value
    answered = one(server, post(COMPLETIONS, json.dumps(body).encode()))
    if answered.status != 200:
        check_refusal(answered, 400, 404)
