"""Messages are records: what any OpenAI-compatible server or official helper emits is accepted back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.api.test_requests import CALL, Asker
from tests.server.api.test_requests import ask as ask  # noqa: PLC0414  (a fixture)
from w2s_core.types import ChatPrompt

ARGUMENTS = {"city": "Zürich"}
FUNCTION = {"name": "weather", "arguments": json.dumps(ARGUMENTS)}
READ = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}


async def read(ask: Asker, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages that the chat template gets."""
    [prompt] = (await ask.asked("chat", messages=[*messages])).prompts
    assert isinstance(prompt, ChatPrompt)
    return [dict(message) for message in prompt.messages]


SAID = {"role": "assistant", "content": "Hi"}
CALLED = {"role": "assistant", "tool_calls": [READ]}

ASSISTANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "openai": ({**SAID, "refusal": None, "annotations": [], "audio": None, "function_call": None}, SAID),
    "openai's citations": ({**SAID, "annotations": [{"type": "url_citation", "url_citation": {"url": "x"}}]}, SAID),
    "openai's audio": ({"content": None, "audio": {"id": "a", "transcript": "Hi"}}, {**SAID, "content": ""}),
    "openai's refusal": ({"content": None, "refusal": "No."}, {**SAID, "content": "No."}),
    "openai's helper parse": ({"content": '{"a": 1}', "parsed": {"a": 1}}, {**SAID, "content": '{"a": 1}'}),
    "vllm": (
        {**SAID, "reasoning": None, "reasoning_content": None, "tool_calls": [], "refusal": None, "audio": None},
        SAID,
    ),
    "litellm": ({**SAID, "provider_specific_fields": {"x": [1]}, "thinking_blocks": [], "images": []}, SAID),
    "openrouter": ({**SAID, "reasoning_details": [{"type": "reasoning.text"}], "native_finish_reason": "x"}, SAID),
    "ollama": ({**SAID, "thinking": "", "images": None}, SAID),
    "deepseek's prefix": ({**SAID, "prefix": True}, SAID),
    "a cut or empty answer": ({"content": None}, {**SAID, "content": ""}),
    "no content at all": ({}, {**SAID, "content": ""}),
    "no parts": ({"content": []}, {**SAID, "content": ""}),
    "accumulated deltas": ({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": FUNCTION}]}, CALLED),
    "parsed arguments": (
        {"content": None, "tool_calls": [{**READ, "function": {**FUNCTION, "parsed_arguments": ARGUMENTS}}]},
        CALLED,
    ),
    "a call's extras": ({"tool_calls": [{**READ, "function": FUNCTION, "extra_content": {"google": {}}}]}, CALLED),
    "arguments as an object": ({"tool_calls": [READ]}, CALLED),
    "a call without a type": ({"tool_calls": [{"id": "c", "function": FUNCTION}]}, CALLED),
    "a call with an empty type": ({"tool_calls": [{"id": "c", "type": "", "function": FUNCTION}]}, CALLED),
    "a type of a provider's own": ({"tool_calls": [{"id": "c", "type": "builtin", "function": FUNCTION}]}, CALLED),
}


@pytest.mark.parametrize("name", ASSISTANTS)
async def test_an_assistants_message_of_any_server_or_helper(ask: Asker, name: str) -> None:
    message, expected = ASSISTANTS[name]
    assert await read(ask, {"role": "assistant", **message}) == [expected]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"city": "Zü', {"city": "Zü"}),
        ('{"city"', {}),
        ('{"days": [1, {"n": "x', {"days": [1, {"n": "x"}]}),
        ("", {}),
        (None, {}),
        ("[1]", "[1]"),
        ("not JSON", "not JSON"),
        ('{"a": "\\ud800"}', '{"a": "\\ud800"}'),
    ],
)
async def test_arguments_that_were_cut_off_or_never_json(ask: Asker, arguments: Any, expected: Any) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    [message] = await read(ask, {"role": "assistant", "content": None, "tool_calls": [call]})
    assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": expected}


async def test_arguments_may_be_missing(ask: Asker) -> None:
    [message] = await read(ask, {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "now"}}]})
    assert message["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}


async def test_openais_other_kinds_of_calls_become_calls_of_functions(ask: Asker) -> None:
    custom = {"id": "c", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
    [message] = await read(ask, {"role": "assistant", "tool_calls": [custom]})
    assert message["tool_calls"] == [
        {"id": "c", "type": "function", "function": {"name": "shell", "arguments": {"input": "ls"}}}
    ]
    called, answered = await read(
        ask,
        {"role": "assistant", "content": None, "function_call": FUNCTION},
        {"role": "function", "name": "weather", "content": "sun"},
    )
    [call] = called["tool_calls"]
    assert call["function"] == READ["function"]
    assert answered == {"role": "tool", "name": "weather", "content": "sun", "tool_call_id": call["id"]}


async def test_missing_ids_are_filled_in_and_results_go_to_the_calls_in_order(ask: Asker) -> None:
    calls = [{"function": FUNCTION}, {"id": None, "function": FUNCTION}, {"id": "mine", "function": FUNCTION}]
    result = {"role": "tool", "content": "sun"}
    called, *results = await read(
        ask,
        {"role": "assistant", "tool_calls": calls},
        result,
        {**result, "tool_call_id": "mine"},
        result,
        {"role": "tool", "content": None},
    )
    ids = [call["id"] for call in called["tool_calls"]]
    assert len({*ids}) == 3
    assert ids[2] == "mine"
    assert all(len(id_) == 9 and id_.isalnum() for id_ in ids[:2]), "as Mistral's template wants them"
    assert [message.get("tool_call_id") for message in results] == [ids[0], "mine", ids[1], None]
    assert results[-1]["content"] == ""


PARTS: dict[str, tuple[Any, str]] = {
    "cache control": ([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}], "a"),
    "annotations": (
        [{"type": "output_text", "text": "a", "annotations": []}, {"type": "input_text", "text": "b"}],
        "a\nb",
    ),
    "no type": ([{"text": "a"}, {"type": None, "text": "b"}], "a\nb"),
    "bare strings": (["a", "b"], "a\nb"),
    "a refusal": ([{"type": "refusal", "refusal": "No."}], "No."),
    "empty": ([], ""),
}


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
@pytest.mark.parametrize("name", PARTS)
async def test_parts_with_extras(ask: Asker, role: str, name: str) -> None:
    parts, text = PARTS[name]
    [message] = await read(ask, {"role": role, "content": parts, "cache_control": {"type": "ephemeral"}, "id": 1})
    assert message["content"] == text


REASONING: dict[str, dict[str, Any]] = {
    "ours, vllm's and deepseek's": {"content": "Hi", "reasoning_content": "hm"},
    "openrouter's and vllm's new one": {"content": "Hi", "reasoning": "hm", "reasoning_content": None},
    "anthropic's parts": {"content": [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"text": "Hi"}]},
    "mistral's parts": {
        "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"text": "Hi"}]
    },
    "langchain's parts": {"content": [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "Hi"}]},
}


@pytest.mark.parametrize("name", REASONING)
async def test_reasoning_reaches_templates_under_both_of_its_names(ask: Asker, name: str) -> None:
    [message] = await read(ask, {"role": "assistant", **REASONING[name]})
    assert message == {**SAID, "reasoning_content": "hm", "reasoning": "hm"}


@pytest.mark.parametrize(
    "reasoning",
    [{"reasoning": {"effort": "low"}}, {"content": ["Hi", {"type": "reasoning", "summary": []}]}, {"refusal": [1]}],
)
async def test_reasoning_that_is_no_text_is_dropped(ask: Asker, reasoning: dict[str, Any]) -> None:
    assert await read(ask, {**SAID, **reasoning}) == [SAID]


async def test_calls_among_the_parts_are_dropped_as_they_are_in_tool_calls_too(ask: Asker) -> None:
    use = {"type": "tool_use", "id": "c", "name": "weather", "input": {}}
    [message] = await read(ask, {"role": "assistant", "content": ["Hi", use], "tool_calls": [CALL]})
    assert message["content"] == "Hi"


async def test_extras_of_any_message_are_dropped(ask: Asker) -> None:
    extras = {"id": "m1", "cache_control": {"type": "ephemeral"}, "tool_calls": [], "function_call": None, "weight": 0}
    for role in ("system", "user", "tool"):
        assert await read(ask, {"role": role, "content": "Hi", **extras}) == [{"role": role, "content": "Hi"}]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "wizard", "content": "Hi"}, "role"),
        ({"role": "", "content": "Hi"}, "role"),
        ({"role": "assistant", "content": 3}, "content"),
        ({"role": "tool", "content": {"a": 1}}, "content"),
        ({"role": "assistant", "content": [3]}, "content.0"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "content.0.type"),
        ({"role": "assistant", "content": [{"type": "image", "source": {}}]}, "content.0.type"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "content.0.type"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "content.0.text"),
        ({"role": "assistant", "tool_calls": [{"id": "x", "type": "custom"}]}, "tool_calls.0.function"),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}, "tool_calls.0.function.name"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}, "tool_calls.0.function.name"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]},
            "tool_calls.0.function.arguments",
        ),
        ({"role": "assistant", "content": "Hi", "tool_calls": "x"}, "tool_calls"),
        ({"role": "assistant", "content": "Hi", "reasoning_content": "\ud800"}, "reasoning_content"),
    ],
)
async def test_what_cannot_be_rendered_is_refused_by_name(ask: Asker, message: dict[str, Any], param: str) -> None:
    assert await ask.refused("chat", messages=[message]) == f"messages.0.{param}"


async def test_an_image_is_refused_in_words_that_say_so(ask: Asker) -> None:
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    response = await ask.post("chat", messages=[message])
    assert "only text" in response.json()["error"]["message"]
    assert "image_url" in response.json()["error"]["message"]


async def test_arguments_are_not_nested_without_end(ask: Asker) -> None:
    deep = json.dumps({"a": json.loads("[" * 120 + "]" * 120)})
    call = {"function": {"name": "f", "arguments": deep}}
    param = "messages.0.tool_calls.0.function.arguments"
    assert await ask.refused("chat", messages=[{"role": "assistant", "tool_calls": [call]}]) == param


async def test_cache_control_of_tools_changes_nothing(ask: Asker) -> None:
    tool = {"type": "function", "function": {"name": "now"}}
    marked = {**tool, "cache_control": {"type": "ephemeral"}}
    inside = {**tool, "function": {"name": "now", "cache_control": {"type": "ephemeral"}}}
    plain = await ask.asked("chat", tools=[tool], tool_choice="none")
    assert await ask.asked("chat", tools=[marked], tool_choice="none") == plain
    assert await ask.asked("chat", tools=[inside], tool_choice="none") == plain


async def test_tools_are_part_of_the_request_and_strict(ask: Asker) -> None:
    tool = {"type": "function", "function": {"name": "now"}, "cach_control": {}}
    assert await ask.refused("chat", tools=[tool]) == "tools.0.cach_control"
