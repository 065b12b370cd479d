"""Tool calls under a grammar are parsed while they stream, however the text is cut."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_core.structured.forced_calls import ForcedCallParser
from w2s_core.structured.tool_formats import HERMES, LLAMA3_JSON, MISTRAL, Call, ToolFormat
from w2s_core.structured.tool_parsing import ArgumentsDelta, CallStart, ParsedPart

NAMES = ("add", "get.weather-2")
ARGUMENTS = ['{"a": 1}', "{}", '{"t": "a } \\" { \\\\", "l": [{}, ["}"]]}', '{ "é€" :\n"\\ud83d\\ude00" }']


def written(form: ToolFormat, calls: list[Call]) -> str:
    """As the grammar has it, with blanks wherever JSON may have them."""
    texts = [f'{{\n"name" : "{call.name}",\t"{form.arguments}": {call.arguments} }}' for call in calls]
    if form is MISTRAL:
        return f"[TOOL_CALLS][{', '.join(texts)}]"
    if form is LLAMA3_JSON:
        return "; ".join(texts)
    return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts)


def read(parts: list[str]) -> tuple[list[Call], str]:
    parser = ForcedCallParser(NAMES)
    pieces: list[ParsedPart] = [piece for part in parts for piece in parser.feed(part)] + parser.finish()
    calls: list[Call] = []
    text = ""
    for piece in pieces:
        if isinstance(piece, CallStart):
            calls.append(Call(piece.name, ""))
        elif isinstance(piece, ArgumentsDelta):
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + piece.text)
        else:
            text += str(piece)
    return calls, text


calls_strategy = st.lists(st.builds(Call, st.sampled_from(NAMES), st.sampled_from(ARGUMENTS)), min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(calls=calls_strategy, form=st.sampled_from([HERMES, LLAMA3_JSON, MISTRAL]), data=st.data())
def test_however_the_text_is_cut_the_calls_are_those_that_were_written(
    calls: list[Call], form: ToolFormat, data: st.DataObject
) -> None:
    text = written(form, calls)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(parts) == (calls, "")
    for call in calls:
        json.loads(call.arguments)


def test_arguments_are_told_letter_by_letter() -> None:
    text = written(HERMES, [Call("add", '{"a": "xyz"}')])
    parser = ForcedCallParser(NAMES)
    told = [piece for letter in text for piece in parser.feed(letter)]
    assert told == [CallStart("add"), *(ArgumentsDelta(letter) for letter in '{"a": "xyz"}')]


@pytest.mark.parametrize("end", range(1, 70))
def test_a_text_that_is_cut_off_leaves_what_there_is(end: int) -> None:
    text = written(HERMES, [Call("add", '{"a": "xyz"}')])[:end]
    calls, rest = read([text])
    if calls:
        [call] = calls
        assert '{"a": "xyz"}'.startswith(call.arguments)
        assert rest == ""
    else:
        assert rest == text


@pytest.mark.parametrize("text", ["Hello {} you", '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>', ""])
def test_what_holds_no_call_is_text(text: str) -> None:
    """A provider may not have followed the grammar."""
    assert read(list(text)) == ([], text)
