"""Every request field at its limits: the engine's request that results, and rejections that name the field."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import field_path
from tests.server.conftest import Connect
from tests.server.fake_engine import FakeEngine
from w2s_core.types import GenerationRequest, SamplingParams

COMPLETION = {"model": "plain", "prompt": "x"}
CHAT = {"model": "plain", "messages": [{"role": "user", "content": "Hi"}]}
PATHS = {"completions": ("/v1/completions", COMPLETION), "chat": ("/v1/chat/completions", CHAT)}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
BOTH = pytest.mark.parametrize("endpoint", ["completions", "chat"])


class Asker:
    """Posts a minimal body with changes to an endpoint, and keeps the request that reached the engine."""

    def __init__(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        self.client, self.engine = client, engine

    async def post(self, endpoint: str, **changes: Any) -> httpx.Response:
        path, body = PATHS[endpoint]
        content = json.dumps({**body, **changes})  # in ASCII: half a surrogate pair can be sent
        return await self.client.post(path, content=content, headers={"content-type": "application/json"})

    async def asked(self, endpoint: str, **changes: Any) -> GenerationRequest:
        response = await self.post(endpoint, **changes)
        assert response.status_code == 200, response.text
        return self.engine.requests[-1]

    async def refused(self, endpoint: str, **changes: Any) -> str | None:
        """The `param` of a 400."""
        response = await self.post(endpoint, **changes)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert not self.engine.requests, "a refused request must not reach the engine"
        param: str | None = error["param"]
        return param


@pytest.fixture
async def ask(connect: Connect) -> Asker:
    engine = FakeEngine()
    return Asker(await connect(engine), engine)


@BOTH
async def test_defaults_are_openais(ask: Asker, endpoint: str) -> None:
    request = await ask.asked(endpoint)
    assert request.default_max_tokens == (16 if endpoint == "completions" else None)
    assert request.sampling == SamplingParams(None, temperature=1.0, top_p=1.0, top_k=0, stop=(), seed=None)
    assert (request.model, request.n, request.best_of, request.guidance) == ("plain", 1, None, None)


@BOTH
async def test_null_is_not_given(ask: Asker, endpoint: str) -> None:
    fields = ["temperature", "top_p", "top_k", "seed", "stop", "n", "max_tokens", "stream", "stream_options"]
    nulls = dict.fromkeys([*fields, "guidance", "user", "metadata", "logprobs", "logit_bias"])
    assert await ask.asked(endpoint, **nulls) == await ask.asked(endpoint)


@BOTH
@pytest.mark.parametrize(
    ("field", "value", "becomes"),
    [
        ("temperature", 0, {"temperature": 0}),
        ("temperature", 2, {"temperature": 2}),
        ("top_p", 1e-9, {"top_p": 1e-9}),
        ("top_p", 1, {"top_p": 1}),
        ("top_k", -1, {"top_k": 0}),
        ("top_k", 0, {"top_k": 0}),
        ("top_k", 50, {"top_k": 50}),
        ("seed", -(2**63), {"seed": -(2**63)}),
        ("seed", 2**63 - 1, {"seed": 2**63 - 1}),
        ("seed", 0, {"seed": 0}),
        ("stop", "\n", {"stop": ("\n",)}),
        ("stop", [], {"stop": ()}),
        ("stop", ["a", "b", "c", "d"], {"stop": ("a", "b", "c", "d")}),
        ("max_tokens", 1, {"max_tokens": 1}),
    ],
)
async def test_sampling_reaches_the_engine(
    ask: Asker, endpoint: str, field: str, value: Any, becomes: dict[str, Any]
) -> None:
    request = await ask.asked(endpoint, **{field: value})
    for name, expected in becomes.items():
        assert getattr(request.sampling, name) == expected


OUT_OF_RANGE: list[tuple[str, Any, str]] = [
    ("temperature", -0.01, "temperature"),
    ("temperature", 2.01, "temperature"),
    ("temperature", "1", "temperature"),
    ("temperature", True, "temperature"),
    ("top_p", 0, "top_p"),
    ("top_p", 1.01, "top_p"),
    ("top_k", -2, "top_k"),
    ("top_k", 1.5, "top_k"),
    ("seed", 2**63, "seed"),
    ("seed", "7", "seed"),
    ("stop", "", "stop"),
    ("stop", ["a", ""], "stop.1"),
    ("stop", list("abcde"), "stop"),
    ("stop", 3, "stop"),
    ("stop", ["a", 3], "stop.1"),
    ("stop", "\ud800", "stop"),
    ("n", 0, "n"),
    ("n", 129, "n"),
    ("n", True, "n"),
    ("n", "2", "n"),
    ("n", 2.0, "n"),
    ("max_tokens", 0, "max_tokens"),
    ("max_tokens", "5", "max_tokens"),
    ("stream", "yes", "stream"),
    ("stream", 1, "stream"),
    ("stream_options", {"include_usage": True}, "stream_options"),  # without stream
    ("model", 3, "model"),
    ("model", None, "model"),
    ("user", 3, "user"),
    ("metadata", "x", "metadata"),
    ("prompt_logprobs", 21, "prompt_logprobs"),
    ("prompt_logprobs", -1, "prompt_logprobs"),
    ("prompt_logprobs", True, "prompt_logprobs"),
    ("return_token_ids", 1, "return_token_ids"),
    ("logprobs", "5", "logprobs"),
    ("logprobs", 2.0, "logprobs"),
    ("guidance", "cbs", "guidance"),
    ("guidance", {"method": "beam"}, "guidance.method"),
    ("guidance", {"beam_width": 0}, "guidance.beam_width"),
    ("guidance", {"beam_width": "5"}, "guidance.beam_width"),
    ("guidance", {"beam_width": True}, "guidance.beam_width"),
    ("guidance", {"successors": 0}, "guidance.successors"),
    ("guidance", {"chunk_length": 0}, "guidance.chunk_length"),
    ("guidance", {"trace": 1}, "guidance.trace"),
    ("guidance", {"trace": "tree"}, "guidance.trace"),
    ("guidance", {"pairs": ["positive"]}, "guidance.pairs"),
    ("guidance", {"pairs": {"positive": "1"}}, "guidance.pairs.positive"),
    ("guidance", {"pairs": {"positive": None}}, "guidance.pairs.positive"),
    ("guidance", {"weights": {}}, "guidance.weights"),
    ("best", 3, "best"),
    ("temperatur", None, "temperatur"),
]


@BOTH
@pytest.mark.parametrize(("field", "value", "param"), OUT_OF_RANGE)
async def test_what_is_out_of_range_is_refused_by_name(
    ask: Asker, endpoint: str, field: str, value: Any, param: str
) -> None:
    assert await ask.refused(endpoint, **{field: value}) == param


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("completions", {"echo": False, "suffix": None}),
        ("chat", {"logprobs": False, "top_logprobs": 0, "tools": None, "functions": None}),
        ("chat", {"tools": [], "tool_choice": "none", "audio": None, "modalities": ["text"], "prediction": None}),
    ],
)
async def test_what_real_clients_send_without_meaning_it(ask: Asker, endpoint: str, fields: dict[str, Any]) -> None:
    await ask.asked(endpoint, **fields)


@pytest.mark.parametrize(
    ("endpoint", "field", "value"),
    [
        ("completions", "suffix", "x"),
        ("completions", "messages", []),
        ("completions", "tools", []),
        ("chat", "tool_choice", "required"),
        ("chat", "modalities", ["text", "audio"]),
        ("chat", "functions", [{"name": "f"}]),
        ("chat", "prompt", "x"),
        ("chat", "best_of", 2),
        ("chat", "min_probability", 0.1),
    ],
)
async def test_what_is_not_honoured_is_refused_by_name(ask: Asker, endpoint: str, field: str, value: Any) -> None:
    assert await ask.refused(endpoint, **{field: value}) == field


@BOTH
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperatur": 1}, "Unknown field: `temperatur`. Did you mean `temperature`?"),
        ({"beam_widht": 4}, "Unknown field: `beam_widht`. Did you mean `guidance.beam_width`?"),
        ({"successors": 4}, "Unknown field: `successors`. Did you mean `guidance.successors`?"),
        ({"guidance": {"chunk_len": 4}}, "Unknown field: `guidance.chunk_len`. Did you mean `chunk_length`?"),
        ({"qqq": 1}, "Unknown field: `qqq`."),
        ({"qqq": 1, "temperature": "x"}, "Unknown field: `qqq`."),
        ({"x" * 10_000: 1}, f"Unknown field: `{'x' * 10_000}`."),
        ({"suffix": "x"}, "`suffix` is not supported."),
        ({"documents": []}, "`documents` is not supported: pass them in `chat_template_kwargs`."),
        ({"modalities": ["audio"]}, 'This value of `modalities` is not supported, only `["text"]`.'),
        (
            {"function_call": {"name": "f"}},
            "This value of `function_call` is not supported, only `none` and `auto`: use `tool_choice`.",
        ),
    ],
)
async def test_the_message_says_which_fault_a_field_has(
    ask: Asker, endpoint: str, fields: dict[str, Any], message: str
) -> None:
    assert (await ask.post(endpoint, **fields)).json()["error"]["message"] == message


@BOTH
async def test_what_cannot_change_the_answer_is_accepted(ask: Asker, endpoint: str) -> None:
    plain = await ask.asked(endpoint)
    harmless: dict[str, Any] = {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
    harmless |= {"safety_identifier": "s", "prompt_cache_key": "k", "parallel_tool_calls": True}
    assert await ask.asked(endpoint, **harmless) == plain


@pytest.mark.parametrize("best_of", [1, 128])
async def test_best_of_reaches_the_engine(ask: Asker, best_of: int) -> None:
    assert (await ask.asked("completions", best_of=best_of, n=1)).best_of == best_of


@pytest.mark.parametrize("best_of", [0, 129, "2", True])
async def test_best_of_out_of_range(ask: Asker, best_of: Any) -> None:
    assert await ask.refused("completions", best_of=best_of) == "best_of"


async def test_max_completion_tokens_wins(ask: Asker) -> None:
    assert (await ask.asked("chat", max_tokens=5)).sampling.max_tokens == 5
    assert (await ask.asked("chat", max_tokens=5, max_completion_tokens=7)).sampling.max_tokens == 7
    assert (await ask.asked("chat", max_completion_tokens=7)).sampling.max_tokens == 7
    assert (await ask.asked("completions", max_tokens=5, max_completion_tokens=7)).sampling.max_tokens == 7


async def test_max_completion_tokens_out_of_range(ask: Asker) -> None:
    assert await ask.refused("chat", max_completion_tokens=0) == "max_completion_tokens"


@BOTH
async def test_a_json_value_may_be_nested_100_levels_deep(ask: Asker, endpoint: str) -> None:
    def nested(levels: int) -> Any:
        return {"a": nested(levels - 1)} if levels else 1

    assert await ask.refused(endpoint, metadata=nested(101)) == "metadata"
    await ask.asked(endpoint, metadata=nested(100))


# Any JSON at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["model", "prompt", "messages", "stop", "n", "guidance", "stream_options", "temperature", "x"])


@settings(deadline=None)
@given(st.lists(st.tuples(FIELDS, JSON), max_size=4))
async def test_no_body_is_our_bug(changes: list[tuple[str, Any]]) -> None:
    """Any JSON is answered or refused and never causes a 500."""
    from tests.server.conftest import loaded

    async with loaded(FakeEngine()) as app:
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for path, body in PATHS.values():
                content = json.dumps({**body, **dict(changes)})
                response = await client.post(path, content=content, headers={"content-type": "application/json"})
                assert response.status_code in (200, 400, 404), response.text


@given(JSON, st.lists(st.integers(0, 3) | st.text(max_size=3), max_size=5))
def test_the_path_of_a_field_is_made_of_parts_of_the_location(body: Any, loc: list[int | str]) -> None:
    parts = iter(str(part) for part in loc)
    found = field_path(loc, body)
    if all("." not in str(part) for part in loc) and found:
        assert all(part in parts for part in found.split(".")), "kept in order, nothing added"


def test_the_path_of_a_missing_field_has_no_label_of_a_union_member() -> None:
    body = {"tool_choice": {"type": "function"}}
    assert field_path(("tool_choice", "named", "function"), body, missing=True) == "tool_choice.function"
