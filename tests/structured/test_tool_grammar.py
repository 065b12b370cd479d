"""The grammar of forced tool calls admits exactly what the parser reads."""

from __future__ import annotations

from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from tests.tiny import byte_tokenizer
from w2s_core.structured.tool_formats import HERMES, LLAMA3_JSON, MISTRAL, TOOL_FORMATS, Call, ToolFormat
from w2s_core.structured.tool_grammar import tool_call_grammar
from w2s_core.structured.tool_parsing import ToolCallParser

CITY = {"$ref": "#/$defs/City"}
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": CITY},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Bern", "Rome"]}},
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "parameters": {"properties": {}}}},
]


def admits(grammar: str, text: str, marks: dict[str, int] | None = None) -> bool:
    """Whether the whole text is one that the grammar admits."""
    tokenizer = byte_tokenizer()
    matcher = LLMatcher(LLTokenizer(tokenizer.backend_tokenizer.to_str(), eos_token=257), grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


CALLS = {
    HERMES.name: ['<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'],
    LLAMA3_JSON.name: ['{"name": "weather", "parameters": {"city": "Bern"}}'],
    MISTRAL.name: ['[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Bern"}}]'],
}


@pytest.mark.parametrize("form", TOOL_FORMATS.values(), ids=TOOL_FORMATS)
def test_what_is_admitted_is_what_is_read(form: ToolFormat) -> None:
    [text] = CALLS[form.name]
    grammar = tool_call_grammar(form, TOOLS, max_calls=None, opening_token=None)
    assert admits(grammar, text)
    parser = ToolCallParser(form, {"weather"})
    assert [*parser.feed(text), *parser.finish()] == [Call("weather", '{"city": "Bern"}')]
    assert not admits(grammar, text.replace("Bern", "Oslo"))
    assert not admits(grammar, text.replace("weather", "weathe"))
    assert not admits(grammar, "Let me see. " + text)
    assert not admits(grammar, text[:-1])


@pytest.mark.parametrize("form", TOOL_FORMATS.values(), ids=TOOL_FORMATS)
def test_several_calls_unless_one_is_enough(form: ToolFormat) -> None:
    now = f'{{"name": "now", "{form.arguments}": {{}}}}'
    text = {
        "hermes": f"<tool_call>\n{now}\n</tool_call>\n<tool_call>\n{now}\n</tool_call>",
        "llama3_json": f"{now}; {now}",
        "mistral": f"[TOOL_CALLS][{now}, {now}]",
    }[form.name]
    assert admits(tool_call_grammar(form, TOOLS, max_calls=None, opening_token=None), text)
    assert not admits(tool_call_grammar(form, TOOLS, max_calls=1, opening_token=None), text)


def test_an_opening_that_is_a_special_token() -> None:
    grammar = tool_call_grammar(
        MISTRAL, TOOLS, max_calls=None, opening_token=256
    )  # the tests' tokenizer writes it <bos>
    assert admits(grammar, '<bos>[{"name": "weather", "arguments": {"city": "Bern"}}]')
    assert not admits(grammar, CALLS["mistral"][0])


@pytest.mark.parametrize("form", TOOL_FORMATS.values(), ids=TOOL_FORMATS)
def test_arguments_are_an_object_even_if_the_tools_schema_has_no_type(form: ToolFormat) -> None:
    text = CALLS[form.name][0].replace("weather", "now")
    grammar = tool_call_grammar(form, TOOLS, max_calls=None, opening_token=None)
    assert admits(grammar, text.replace('{"city": "Bern"}', "{}"))
    assert not admits(grammar, text.replace('{"city": "Bern"}', "3"))
    assert not admits(grammar, text.replace('{"city": "Bern"}', '"{}"'))
