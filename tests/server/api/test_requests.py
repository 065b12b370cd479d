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
from w2s_core.types import ChatPrompt, GenerationRequest, Guidance, SamplingParams, TextPrompt, TokenPrompt

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
    limit = 16 if endpoint == "completions" else None
    assert request.sampling == SamplingParams(limit, temperature=1.0, top_p=1.0, top_k=0, stop=(), seed=None)
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
    ("guidance", {"chunk_length": None}, "guidance.chunk_length"),
    ("guidance", {"trace": 1}, "guidance.trace"),
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
        ("chat", {"logprobs": False, "top_logprobs": 0, "tools": None, "tool_choice": "auto", "functions": None}),
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
        ("completions", "max_completion_tokens", 5),
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
async def test_what_cannot_change_the_answer_is_accepted(ask: Asker, endpoint: str) -> None:
    plain = await ask.asked(endpoint)
    harmless: dict[str, Any] = {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
    harmless |= {"safety_identifier": "s", "prompt_cache_key": "k", "parallel_tool_calls": True}
    assert await ask.asked(endpoint, **harmless) == plain


# Prompts


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("", (TextPrompt(""),)),
        ("Hé", (TextPrompt("Hé"),)),
        (["a"], (TextPrompt("a"),)),
        (["a", "b"], (TextPrompt("a"), TextPrompt("b"))),
        ([1, 2], (TokenPrompt((1, 2)),)),
        ([[1], [2, 3]], (TokenPrompt((1,)), TokenPrompt((2, 3)))),
    ],
)
async def test_prompts_of_every_kind(ask: Asker, prompt: Any, prompts: tuple[Any, ...]) -> None:
    assert (await ask.asked("completions", prompt=prompt)).prompts == prompts


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        ([], "prompt"),
        ([[]], "prompt.0"),
        ({}, "prompt"),
        (3, "prompt"),
        (["a", 3], "prompt.1"),
        ([1, "a"], "prompt.1"),
        ([1, -1], "prompt.1"),
        ([1, True], "prompt.1"),
        ([[1], "a"], "prompt.1"),
        ([[1], [2.5]], "prompt.1.0"),
        ("\udfff", "prompt"),
    ],
)
async def test_prompts_of_no_kind(ask: Asker, prompt: Any, param: str) -> None:
    assert await ask.refused("completions", prompt=prompt) == param


@pytest.mark.parametrize("best_of", [1, 128])
async def test_best_of_reaches_the_engine(ask: Asker, best_of: int) -> None:
    assert (await ask.asked("completions", best_of=best_of, n=1)).best_of == best_of


@pytest.mark.parametrize("best_of", [0, 129, "2", True])
async def test_best_of_out_of_range(ask: Asker, best_of: Any) -> None:
    assert await ask.refused("completions", best_of=best_of) == "best_of"


# Messages


async def test_messages_reach_the_template(ask: Asker) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be kind."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}],
            "name": "Ann",
        },
        {"role": "assistant", "content": "Hi", "refusal": None, "annotations": [], "tool_calls": None, "audio": None},
        {"role": "tool", "content": "4", "tool_call_id": "call_1"},
        {"role": "system", "content": ""},
    ]
    assert (await ask.asked("chat", messages=messages)).prompts == (
        ChatPrompt(
            (
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "One.\nTwo.", "name": "Ann"},
                {"role": "assistant", "content": "Hi"},
                {"role": "tool", "content": "4", "tool_call_id": "call_1"},
                {"role": "system", "content": ""},
            )
        ),
    )


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("Hi", "messages"),
        (["Hi"], "messages.0"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"content": "Hi"}], "messages.0.role"),
        ([{"role": "wizard", "content": "Hi"}], "messages.0.role"),
        ([{"role": "user", "content": None}], "messages.0.content"),
        ([{"role": "user", "content": 3}], "messages.0.content"),
        ([{"role": "user", "content": []}], "messages.0.content"),
        ([{"role": "user", "content": ["Hi"]}], "messages.0.content.0"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text"),
        ([{"role": "user", "content": [{"type": "image_url", "text": "x"}]}], "messages.0.content.0.type"),
        ([{"role": "user", "content": "Hi", "mood": "good"}], "messages.0.mood"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "\ud800"}], "messages.1.content"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]}], "messages.0.tool_calls.0.function"),
        ([{"role": "assistant", "content": None}], "messages.0.content"),
        ([{"role": "user", "content": "Hi", "tool_calls": [CALL]}], "messages.0.tool_calls"),
        ([{"role": "assistant", "tool_calls": [{**CALL, "type": "x"}]}], "messages.0.tool_calls.0.type"),
        (
            [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[1]"}}]}],
            "messages.0.tool_calls.0.function.arguments",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}]}],
            "messages.0.tool_calls.0.function.arguments",
        ),
    ],
)
async def test_messages_that_are_none(ask: Asker, messages: Any, param: str) -> None:
    assert await ask.refused("chat", messages=messages) == param


async def test_max_completion_tokens_wins(ask: Asker) -> None:
    assert (await ask.asked("chat", max_tokens=5)).sampling.max_tokens == 5
    assert (await ask.asked("chat", max_tokens=5, max_completion_tokens=7)).sampling.max_tokens == 7
    assert (await ask.asked("chat", max_completion_tokens=7)).sampling.max_tokens == 7


async def test_max_completion_tokens_out_of_range(ask: Asker) -> None:
    assert await ask.refused("chat", max_completion_tokens=0) == "max_completion_tokens"


# Guidance


@BOTH
@pytest.mark.parametrize(
    ("model", "asked", "effective"),
    [
        ("plain", None, None),
        ("steered", None, None),  # the engine takes the served model's own
        ("steered", {"beam_width": 2}, Guidance("cbs", {"positive": 1.0}, 2, 4, 5)),
        ("steered", {"trace": True}, Guidance("cbs", {"positive": 1.0}, 4, 4, 5, trace=True)),
        ("steered", {"pairs": {"polite": -0.5}}, Guidance("cbs", {"polite": -0.5}, 4, 4, 5)),
        ("steered", {"pairs": {"polite": 2}}, Guidance("cbs", {"polite": 2.0}, 4, 4, 5)),
        ("steered", {}, Guidance("cbs", {"positive": 1.0}, 4, 4, 5)),
        ("plain", {"pairs": {"positive": 1.0}}, Guidance("cbs", {"positive": 1.0}, 4, 4, 5)),
        ("plain", {"method": "none"}, Guidance("none")),
        ("steered", {"method": "none"}, Guidance("none", {"positive": 1.0}, 4, 4, 5)),
        ("steered", {"method": "best_of_n", "successors": 9}, Guidance("best_of_n", {"positive": 1.0}, 4, 9, 5)),
        ("best", None, None),
    ],
)
async def test_the_bodys_guidance_lies_over_the_models(
    ask: Asker, endpoint: str, model: str, asked: Any, effective: Guidance | None
) -> None:
    assert (await ask.asked(endpoint, model=model, guidance=asked)).guidance == effective


# How a conversation is rendered


async def test_calls_reach_the_template_with_their_arguments_as_they_are(ask: Asker) -> None:
    messages = [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [CALL, {**CALL, "function": {"name": "now", "arguments": ""}}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "1"},
    ]
    [prompt] = (await ask.asked("chat", messages=messages)).prompts
    assert isinstance(prompt, ChatPrompt)
    function = {"type": "function", "id": "1"}
    assert prompt.messages == (
        {
            "role": "assistant",
            "tool_calls": [
                {**function, "function": {"name": "add", "arguments": {"a": 1}}},
                {**function, "function": {"name": "now", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "2", "tool_call_id": "1"},
    )


@pytest.mark.parametrize(
    ("fields", "opens", "continues"),
    [
        ({}, True, False),
        ({"add_generation_prompt": True}, True, False),
        ({"add_generation_prompt": False}, False, False),
        ({"continue_final_message": False}, True, False),
        ({"continue_final_message": True}, False, True),
        ({"continue_final_message": True, "add_generation_prompt": False}, False, True),
    ],
)
async def test_an_answer_begins_a_turn_or_goes_on(
    ask: Asker, fields: dict[str, Any], opens: bool, continues: bool
) -> None:
    [prompt] = (await ask.asked("chat", **fields)).prompts
    assert isinstance(prompt, ChatPrompt)
    assert (prompt.opens_answer, prompt.continues) == (opens, continues)


async def test_an_answer_cannot_do_both(ask: Asker) -> None:
    both = {"add_generation_prompt": True, "continue_final_message": True}
    assert await ask.refused("chat", **both) == "continue_final_message"
    assert await ask.refused("completions", continue_final_message=True) == "continue_final_message"


async def test_the_templates_variables_reach_it(ask: Asker) -> None:
    assert await ask.refused("chat", chat_template_kwargs=["x"]) == "chat_template_kwargs"
    [prompt] = (await ask.asked("chat", chat_template_kwargs={"enable_thinking": False})).prompts
    assert isinstance(prompt, ChatPrompt)
    assert prompt.template_variables == {"enable_thinking": False}


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
