"""Strategies for what a provider may send: any JSON, good answers that were tampered with, any headers and bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import httpx
from hypothesis import strategies as st

from w2s_core.config import ProviderConfig
from w2s_core.remote.provider import Provider

KEYS = (
    "choices", "usage", "error", "data", "id", "parent", "max_model_len", "index", "text", "finish_reason",
    "stop_reason", "token_ids", "prompt_token_ids", "prompt_logprobs", "logprobs", "tokens", "token_logprobs",
    "top_logprobs", "text_offset", "logprob", "prompt_tokens", "completion_tokens", "message", "code",
)  # fmt: skip
NUMBERS = [0, -1, 1, 299, 300, 2**31, 2**64, 10**400, 0.5, -9999.0, -9999, -1e308, 1e308, math.nan, -math.inf]
STRINGS = ["", "stop", "token_id:5", "token_id:-1", "token_id:٣", "bytes:\\xe2", "\ud83d", "\ude00", "\x00", "☃", "1"]
SCALARS = st.none() | st.booleans() | st.sampled_from([*NUMBERS, *STRINGS]) | st.integers() | st.floats() | st.text()
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
)
Tamper = Callable[[Any], Any]


@st.composite
def tampering(draw: st.DrawFn) -> Tamper:
    """A function that changes one to three places of a JSON value: replaces, deletes or repeats what is there."""
    numbers = st.integers(0, 10**6)
    ways = st.sampled_from(["like", "like", "like", "any", "delete", "repeat"])
    changes = draw(st.lists(st.tuples(numbers, numbers, numbers, ways, JSON), min_size=1, max_size=3))

    def tamper(value: Any) -> Any:
        root = {"": deepcopy(value)}
        for field, place, number, way, other in changes:
            places: dict[str, list[tuple[Any, Any]]] = {}
            for holder, key, name in _places(root):
                places.setdefault(name, []).append((holder, key))
            named = sorted(places)[field % len(places)]  # each field is as likely as another, however long it is
            _change(*places[named][place % len(places[named])], way, number, other)
        return root[""]

    return tamper


def _change(holder: Any, key: Any, way: str, number: int, other: Any) -> None:
    value = holder[key]
    if way == "like" and isinstance(value, int | float):
        holder[key] = NUMBERS[number % len(NUMBERS)]
    elif way == "like" and isinstance(value, str):
        holder[key] = STRINGS[number % len(STRINGS)]
    elif way == "delete" and key != "":
        del holder[key]
    elif way == "repeat" and isinstance(holder, list):
        holder.insert(key, deepcopy(value))
    else:
        holder[key] = deepcopy(other)


def _places(holder: Any, name: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Each place's container, its key there, and the name of the field that it is in."""
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        field = key if isinstance(key, str) and key in KEYS else name
        yield holder, key, field
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key], field)


def nothing(value: Any) -> Any:
    """Tampers with nothing."""
    return value


TAMPERING = tampering() | JSON.map(lambda other: lambda _: other) | st.just(nothing)

DATES = st.builds(
    "{}, {} {} {} {} {}".format,
    st.sampled_from(["Wed", "", "X"]),
    st.integers(-5, 10**20),
    st.sampled_from(["Oct", "Jan", "Foo"]),
    st.integers(0, 10**22),
    st.sampled_from(["07:28:00", "99:99:99", "1:2", "99999999999999999999:1:1"]),
    st.sampled_from(["GMT", "", "EST"]) | st.integers(-(10**12), 10**12).map("{:+d}".format),
)
_VALUES = st.one_of(
    st.binary(max_size=20),
    st.integers(-(10**25), 10**25).map(lambda number: str(number).encode()),
    DATES.map(str.encode),
    st.sampled_from([b"gzip", b"deflate", b"zstd", b"gzip, gzip", b"nan", b"inf", b"-1", b"text/event-stream"]),
    st.sampled_from([b"mailto:x", b"http:", b"//[::1", b"http://[", b"https://\xff/", b"http://a:99999999/", b"/\x00"]),
    st.sampled_from(
        [b"a=\xff", b"a=b; max-age=9999999999999999999; expires=Wed, 99 Oct 99999", b"=; port=x; version=y"]
    ),
)
_NAMES = st.sampled_from([b"retry-after", b"content-type", b"content-encoding", b"location", b"set-cookie", b"x"])
HEADERS = st.lists(st.tuples(_NAMES, _VALUES), max_size=4)
STATUSES = st.sampled_from([200, 200, 200, 201, 204, 301, 302, 400, 401, 404, 429, 500, 503]) | st.integers(100, 999)
BODIES = st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode())


async def provider_of(handler: Callable[[httpx.Request], httpx.Response]) -> Provider:
    """A started provider that is called without a socket and tries once."""
    config = ProviderConfig(base_url="http://far/v1", model="remote-model", max_retries=0, breaker_failures=10**6)
    provider = Provider("far", config, api_key="sk-secret")
    await provider.start()
    assert provider._client is not None
    provider._client._transport = httpx.MockTransport(handler)
    return provider
