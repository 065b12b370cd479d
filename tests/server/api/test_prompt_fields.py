"""Prompts and messages of a body: what reaches the engine and the chat template, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.api.test_requests import CALL, Asker
from tests.server.api.test_requests import ask as ask  # noqa: PLC0414  (a fixture)
from w2s_core.types import ChatPrompt, TextPrompt, TokenPrompt


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
        ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text"),
        ([{"role": "user", "content": [{"type": "image_url", "text": "x"}]}], "messages.0.content.0.type"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "\ud800"}], "messages.1.content"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]}], "messages.0.tool_calls.0.function"),
        ([{"role": "user", "content": "Hi", "tool_calls": [CALL]}], "messages.0.tool_calls"),
    ],
)
async def test_messages_that_are_none(ask: Asker, messages: Any, param: str) -> None:
    assert await ask.refused("chat", messages=messages) == param


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
