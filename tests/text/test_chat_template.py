"""Chat templates: conversations are rendered and continued exactly; tools where the template supports them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import TEMPLATE, byte_tokenizer
from w2s_core.errors import RequestError
from w2s_core.text.chat_template import ChatTemplate
from w2s_core.types import ChatPrompt

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}"
OPENS = PLAIN + "{% if add_generation_prompt %}<assistant>{% endif %}"
TRIMS = OPENS.replace("m.content", "m.content | trim")
TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + OPENS.replace(
    "<end>", "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<end>"
)
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {}}}
USER = {"role": "user", "content": "Hi"}


def template(source: Any) -> ChatTemplate:
    return ChatTemplate(byte_tokenizer(source))


def continued(source: str, text: str) -> str:
    messages = (USER, {"role": "assistant", "content": text})
    return template(source).render(ChatPrompt(messages, opens_answer=False, continues=True))


def refused(source: Any, prompt: ChatPrompt) -> str | None:
    with pytest.raises(RequestError) as caught:
        template(source).render(prompt)
    return caught.value.param


def test_an_assistants_turn_is_opened_unless_it_shall_not_be() -> None:
    assert template(OPENS).render(ChatPrompt((USER,))) == "<user>Hi<end>\n<assistant>"
    assert template(OPENS).render(ChatPrompt((USER,), opens_answer=False)) == "<user>Hi<end>\n"


@pytest.mark.parametrize("source", [OPENS, TRIMS])
@given(text=st.text(max_size=20).filter(lambda text: text.isprintable()) | st.text(" \n\t\u00a0ab", max_size=8))
def test_continuing_ends_with_the_text_exactly(source: str, text: str) -> None:
    assert continued(source, text) == f"<user>Hi<end>\n<assistant>{text}"


def test_a_last_message_that_the_template_changes_cannot_be_continued() -> None:
    prompt = ChatPrompt((USER, {"role": "assistant", "content": "abc"}), opens_answer=False, continues=True)
    assert refused(OPENS.replace("m.content", "m.content | upper"), prompt) == "continue_final_message"
    assert refused("{% for m in messages[:-1] %}{{ m.content }}{% endfor %}", prompt) == "continue_final_message"
    assert refused(OPENS.replace("m.content", "m.content | replace('b', '')"), prompt) == "continue_final_message"


def test_there_must_be_something_to_continue() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add"}}]}
    assert refused(TOOLS, ChatPrompt((USER, call), continues=True)) == "continue_final_message"


def test_variables_reach_the_template() -> None:
    source = OPENS + "{% if enable_thinking is false %}<quiet>{% endif %}"
    assert template(source).render(ChatPrompt((USER,))).endswith("<assistant>")
    assert (
        template(source).render(ChatPrompt((USER,), template_variables={"enable_thinking": False})).endswith("<quiet>")
    )


@pytest.mark.parametrize("name", ["chat_template", "messages", "tools", "tokenize", "conversation", "padding"])
def test_variables_cannot_be_the_rendering_itself(name: str) -> None:
    prompt = ChatPrompt((USER,), template_variables={name: "x"})
    assert refused(OPENS, prompt) == f"chat_template_kwargs.{name}"


def test_tools_and_calls_are_rendered_where_there_is_a_place_for_them() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = (USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "2"})
    text = template(TOOLS.replace("{{ m.content }}", "{{ m.content or '' }}")).render(
        ChatPrompt(messages, tools=(TOOL,))
    )
    assert text.startswith('[{"type": "function", "function": {"name": "add"')
    assert '<assistant>{"name": "add", "arguments": {"a": 1}}<end>\n<tool>2<end>' in text
    assert refused(OPENS, ChatPrompt((USER,), tools=(TOOL,))) == "tools"
    assert refused(OPENS, ChatPrompt(messages)) == "messages.1.tool_calls"


def test_a_template_of_its_own_for_tools_is_used_for_them() -> None:
    both = template({"default": OPENS, "tool_use": "with tools: {{ tools | length }}"})
    assert both.supports_tools
    assert both.render(ChatPrompt((USER,))) == "<user>Hi<end>\n<assistant>"
    assert both.render(ChatPrompt((USER,), tools=(TOOL,))) == "with tools: 1"


@pytest.mark.parametrize("source", ["{{ 1 / 0 }}", "{{ messages[7].role.x }}", "{{ raise_exception('no') }}", None])
def test_whatever_a_template_raises_is_about_the_messages(source: str | None) -> None:
    assert refused(source, ChatPrompt((USER,))) == "messages"


def test_what_is_no_text_is_refused() -> None:
    prompt = ChatPrompt((USER,), template_variables={"x": "\ud800"})
    assert refused(TEMPLATE + "{{ x }}", prompt) == "messages"
