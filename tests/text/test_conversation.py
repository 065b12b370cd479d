"""Conversations are adapted to what a chat template takes: one system message, and ids of nine characters."""

from __future__ import annotations

from typing import Any

import pytest

from tests.text.test_chat_template import OPENS, USER, refused, template
from w2s_core.types import ChatPrompt

FIRST_ONLY = """
{%- if messages[0].role == "system" %}{% set system, loop_messages = messages[0].content, messages[1:] %}
{%- else %}{% set system, loop_messages = "", messages %}{% endif -%}
"""
SAYS = "{% for m in loop_messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
RAISES = FIRST_ONLY + (
    "{{ '[' + system + ']' }}{% for m in loop_messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}{% endfor %}" + SAYS
)
IGNORES = FIRST_ONLY + "[{{ system | trim }}]" + SAYS.replace("loop_messages", "loop_messages if m.role != 'system'")
REFUSES = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{% endfor %}x"


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


@pytest.mark.parametrize("source", [RAISES, IGNORES])
@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ((USER,), "[]<user>Hi"),
        ((system("A"), USER), "[A]<user>Hi"),
        ((system("A "), system("B\n"), USER), "[A \n\nB]<user>Hi"),
        ((system("A"), USER, system("B"), USER), "[A\n\nB]<user>Hi<user>Hi"),
        ((USER, system("B")), "[B]<user>Hi"),
    ],
)
def test_system_messages_are_merged_where_a_template_takes_one(source: str, messages: Any, expected: str) -> None:
    assert template(source).render(ChatPrompt(messages)).replace("\n]", "]") == expected


def test_they_stay_where_they_are_where_a_template_takes_several() -> None:
    messages = (system("A"), USER, system("B"), system(""))
    assert template(OPENS).render(ChatPrompt(messages, opens_answer=False)) == (
        "<system>A<end>\n<user>Hi<end>\n<system>B<end>\n<system><end>\n"
    )


def test_a_template_that_takes_none_still_refuses() -> None:
    assert refused(REFUSES, ChatPrompt((system("A"), USER))) == "messages"
    assert refused(REFUSES, ChatPrompt((system("A"), system("B"), USER))) == "messages"


# As in the templates of Mistral's models
MISTRAL = """
{%- for m in messages %}
  {%- for call in m.tool_calls or [] %}
    {%- if not call.id is defined or call.id|length != 9 %}
      {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
    {%- endif %}
    {{- "[TOOL_CALLS]" + call.id }}
  {%- endfor %}
  {%- if m.role == "tool" %}
    {%- if not m.tool_call_id is defined or m.tool_call_id|length != 9 %}
      {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
    {%- endif %}
    {{- "[TOOL_RESULTS]" + m.tool_call_id }}
  {%- endif %}
{%- endfor %}
"""


def called(source: str, *ids: str) -> str:
    calls = [{"id": id_, "type": "function", "function": {"name": "f", "arguments": {}}} for id_ in ids]
    results = [{"role": "tool", "content": "x", "tool_call_id": id_} for id_ in ids]
    return template(source).render(ChatPrompt((USER, {"role": "assistant", "tool_calls": calls}, *results)))


def test_the_ids_of_other_servers_calls_are_shortened_for_mistrals_templates() -> None:
    assert called(MISTRAL, "abcdefgh1") == "[TOOL_CALLS]abcdefgh1[TOOL_RESULTS]abcdefgh1", "its own stay"
    _, first, second, *results = called(MISTRAL, "call_" + "a" * 24, "call_" + "b" * 24).split("[TOOL_")
    ids = [first.removeprefix("CALLS]"), second.removeprefix("CALLS]")]
    assert len({*ids}) == 2
    assert all(len(id_) == 9 and id_.isalnum() for id_ in ids)
    assert [result.removeprefix("RESULTS]") for result in results] == ids


def test_other_templates_get_the_ids_as_they_are() -> None:
    assert called(MISTRAL.replace("length != 9", "length == 0"), "call_1") == "[TOOL_CALLS]call_1[TOOL_RESULTS]call_1"


DOCUMENTS = OPENS + "{% for d in documents or [] %}({{ d.title }}: {{ d.text }}){% endfor %}"


def test_documents_reach_the_template() -> None:
    given = ChatPrompt((USER,), template_variables={"documents": [{"title": "T", "text": "x"}]})
    assert template(DOCUMENTS).render(given).endswith("(T: x)")


@pytest.mark.parametrize("documents", ["x", ["x"], {"title": "T"}, 3])
def test_documents_are_a_list_of_objects(documents: Any) -> None:
    given = ChatPrompt((USER,), template_variables={"documents": documents})
    assert refused(DOCUMENTS, given) == "chat_template_kwargs.documents"
