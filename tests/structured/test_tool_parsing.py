"""Tool calls are parsed in each format however the text is cut; what is not a call stays text, unchanged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_core.structured.tool_formats import (
    HERMES,
    LLAMA3_JSON,
    MISTRAL,
    TOOL_FORMATS,
    Call,
    ToolFormat,
    detect_tool_format,
)
from w2s_core.structured.tool_parsing import ParsedPart, ToolCallParser

NAMES = ("add", "get_weather")
ADD = '{"name": "add", "arguments": {"a": 1}}'
CALLED = Call("add", '{"a": 1}')


def parsed(form: ToolFormat, pieces: list[str], most: int | None = None) -> list[ParsedPart]:
    parser = ToolCallParser(form, NAMES, max_calls=most)
    found = [piece for text in pieces for piece in parser.feed(text)] + parser.finish()
    joined: list[ParsedPart] = []
    for piece in found:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


CASES: list[tuple[ToolFormat, str, list[ParsedPart]]] = [
    (HERMES, "Hello, no calls here.\n", ["Hello, no calls here.\n"]),
    (HERMES, f"<tool_call>\n{ADD}\n</tool_call>", [CALLED]),
    (HERMES, f"Let me see.\n\n<tool_call>{ADD}</tool_call>\n", ["Let me see.", CALLED]),
    (HERMES, f"<tool_call>{ADD}</tool_call>\n<tool_call>{ADD}</tool_call>", [CALLED, CALLED]),
    (HERMES, f"<tool_call>{ADD}", [CALLED]),
    (HERMES, f"<tool_call>{ADD}</tool_call> Done.", [CALLED, "Done."]),
    (
        HERMES,
        '<tool_call>{"name": "add", "arguments": {"x": "}</tool_call>\\""}}',
        [Call("add", '{"x": "}</tool_call>\\""}')],
    ),
    (HERMES, '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}', [CALLED]),
    (HERMES, '<tool_call>{"name": "add"}', [Call("add", "{}")]),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"x": "é"}}', [Call("add", '{"x": "é"}')]),
    (LLAMA3_JSON, '{"name": "add", "parameters": {"a": 1}}', [CALLED]),
    (
        LLAMA3_JSON,
        '\n {"name": "add", "parameters": {"a": 1}}; {"name": "add", "parameters": {"a": 1}}',
        [CALLED, CALLED],
    ),
    (LLAMA3_JSON, '<|python_tag|>{"name": "add", "parameters": {"a": 1}}', [CALLED]),
    (LLAMA3_JSON, 'Say {"name": "add", "parameters": {}}', ['Say {"name": "add", "parameters": {}}']),
    (MISTRAL, f"[TOOL_CALLS][{ADD}, {ADD}]", [CALLED, CALLED]),
    (MISTRAL, f"[TOOL_CALLS] [{ADD}]", [CALLED]),
    (MISTRAL, '[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]add[CALL_ID]ab12[ARGS]{"a": 1}', [CALLED, CALLED]),
    (MISTRAL, 'Hm. [TOOL_CALLS]add{"a": 1}', ["Hm.", CALLED]),
]
NO_CALLS = [
    "<tool_call>",
    "<tool_call>\nadd(1)\n</tool_call>",
    '  <tool_call> {"name": "add", "arguments": {"a": }} </tool_call>',
    '<tool_call>{"name": "add", "arguments": {"a": 1}',
    '<tool_call>{"name": "add", "arguments": {"a": 1]}',
    '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>',
    '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": "add", "arguments": {"a": "\\ud800"}}</tool_call>',
    '<tool_call>{"name": "sub", "arguments": {}}</tool_call>',
    '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
    '<tool_call>{"nested": ' + "[" * 5000 + "]" * 5000 + "}</tool_call>",
    '<tool_call>{"name": "sub", "arguments": {"x": "<tool_call>{}"}}</tool_call>',
    "<tool_call>" + " " * 300 + "{}",
    "  \n",
    "<tool_cal",
    '{"name": "sub", "parameters": {}} and so on',
    "<|python_tag|>print(1)",
    "[TOOL_CALLS][]",
    "[TOOL_CALLS]sub[ARGS]{}",
    '[TOOL_CALLS][{"name": "sub"}]',
    '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}, {"name": "sub"}]',
    "[TOOL_CALLS]add and more {}",
]


@pytest.mark.parametrize(("form", "text", "expected"), CASES)
def test_each_format(form: ToolFormat, text: str, expected: list[ParsedPart]) -> None:
    assert parsed(form, [text]) == expected
    assert parsed(form, list(text)) == expected


@pytest.mark.parametrize("form", TOOL_FORMATS.values(), ids=TOOL_FORMATS)
@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call_stays_text(form: ToolFormat, text: str) -> None:
    assert parsed(form, [text]) == [text]
    assert parsed(form, list(text)) == [text]


FRAGMENTS = [ADD, f"[{ADD}]", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "add", "[ARGS]", ";"]
FRAGMENTS += ['{"name": "add", "parameters": {"s": "\\\\\\"}"}}', "{", "}", "[", '"', "\\", " ", "\n", "<tool", "word"]


@settings(max_examples=400)
@given(
    form=st.sampled_from(list(TOOL_FORMATS.values())),
    parts=st.lists(
        st.sampled_from(FRAGMENTS),
        max_size=12,
    ),
    cuts=st.lists(st.integers(0, 300), max_size=8),
)
def test_cutting_changes_nothing(form: ToolFormat, parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    borders = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[a:b] for a, b in zip(borders, borders[1:], strict=False)]
    assert parsed(form, pieces) == parsed(form, [text])
    assert parsed(form, list(text)) == parsed(form, [text])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    form=st.sampled_from(list(TOOL_FORMATS.values())),
    arguments=st.lists(st.dictionaries(st.text(max_size=8), JSON, max_size=4), min_size=1, max_size=3),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_any_arguments_come_back(
    form: ToolFormat, arguments: list[dict[str, Any]], ascii_only: bool, indent: int | None
) -> None:
    calls = [{"name": "get_weather", form.arguments: argument} for argument in arguments]
    written = [json.dumps(call, ensure_ascii=ascii_only, indent=indent) for call in calls]
    text = {
        "hermes": "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in written),
        "llama3_json": "; ".join(written),
        "mistral": f"[TOOL_CALLS][{', '.join(written)}]",
    }[form.name]
    found = parsed(form, list(text))
    assert [json.loads(call.arguments) for call in found if isinstance(call, Call)] == arguments
    assert len(found) == len(arguments)


def test_calls_beyond_the_most_are_dropped() -> None:
    assert parsed(HERMES, [f"<tool_call>{ADD}</tool_call>" * 3], most=1) == [CALLED]
    assert parsed(MISTRAL, [f"[TOOL_CALLS][{ADD}, {ADD}]"], most=1) == [CALLED]


def test_text_is_told_as_soon_as_it_cannot_be_a_call() -> None:
    parser = ToolCallParser(HERMES, NAMES)
    assert parser.feed("Hello <") == ["Hello"]
    assert parser.feed("b> ") == [" <b>"]
    assert parser.feed("x") == [" x"]
    parser = ToolCallParser(LLAMA3_JSON, NAMES)
    assert parser.feed(" H") == [" H"]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("within <tool_call></tool_call> XML tags", "hermes"),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ('Respond in the format {"name": function name, "parameters": dictionary of argument name}', "llama3_json"),
        ("{{ '<|python_tag|>' }}", "llama3_json"),
        ("<tool_call><function=add>", None),
        ("{{ messages }}", None),
    ],
)
def test_the_template_shows_the_format(template: str, name: str | None) -> None:
    found = detect_tool_format(template)
    assert (found.name if found else None) == name
