"""The parser that separates thoughts from answers: the same parts however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2s_core.text.reasoning import (
    REASONING_FORMATS,
    ReasoningFormat,
    ReasoningParser,
    ReasoningState,
    detect_reasoning_format,
)

QWEN3, R1, MISTRAL = (REASONING_FORMATS[name] for name in ("qwen3", "deepseek_r1", "mistral"))


def parse(pieces: list[str], form: ReasoningFormat = QWEN3, prompt: str = "") -> tuple[str, str]:
    """(thoughts, answer) of a text that arrives in pieces."""
    parser = ReasoningParser(form, form.state_behind(prompt))
    parts = [part for piece in pieces for part in parser.feed(piece)] + parser.finish()
    thoughts, answer = ("".join(part.text for part in parts if part.thought is kind) for kind in (True, False))
    return thoughts, answer


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("<think>\nHm. 1 < 2\n</think>\n\nYes.", "", ("Hm. 1 < 2", "Yes.")),
        ("Hm.\n</think>\n\nYes.\n", "<|im_start|>assistant\n<think>\n", ("Hm.", "Yes.\n")),
        ("<think>\nHm.</think>Yes.", "<think>\n", ("Hm.", "Yes.")),
        ("Yes. <think>", "<think>\n\n</think>\n\n", ("", "Yes. <think>")),
        ("<think>\n\n</think>\n\nYes.", "", ("", "Yes.")),
        ("<think></think></think> Yes.", "", ("", "</think> Yes.")),
        ("<think>Hm. </thin", "", ("Hm. </thin", "")),
        ("<think>Hm.</think>\n", "", ("Hm.", "")),
        ("<think>", "", ("", "")),
        ("<think>", "<think>", ("", "")),
        ("<thi", "", ("", "<thi")),
        ("\n <thing>", "", ("", "\n <thing>")),
        ("  Yes. ", "", ("", "  Yes. ")),
        ("", "", ("", "")),
    ],
)
def test_thoughts_and_answer(text: str, prompt: str, expected: tuple[str, str]) -> None:
    assert parse([text], QWEN3, prompt) == expected
    assert parse(list(text), QWEN3, prompt) == expected


def test_a_format_whose_models_leave_out_the_opening() -> None:
    assert parse(["Hm.</think>Yes."], R1) == ("Hm.", "Yes.")
    assert parse(["<think>Hm.</think>Yes."], R1) == ("Hm.", "Yes.")
    assert parse(["Hm."], R1) == ("Hm.", "")
    assert parse(["Yes."], R1, "<think>\n\n</think>\n\n") == ("", "Yes.")
    assert parse(["Yes."]) == ("", "Yes.")


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "<", "think", ">", "\n", " ", "a", "é", "</", "[THINK]"]), max_size=9
    ),
    st.sampled_from(["", "<think>\n", "x</think>\n\n"]),
    st.sampled_from(list(REASONING_FORMATS.values())),
    st.data(),
)
def test_the_parts_do_not_depend_on_how_the_text_is_cut(
    text: list[str], prompt: str, form: ReasoningFormat, data: st.DataObject
) -> None:
    joined = "".join(text)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(joined)))) | {0, len(joined)})
    pieces = [joined[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    whole = ReasoningParser(form, form.state_behind(prompt))
    parts = [*whole.feed(joined), *whole.finish()]
    thoughts, answer = ("".join(part.text for part in parts if part.thought is kind) for kind in (True, False))
    assert parse(pieces, form, prompt) == (thoughts, answer)
    if whole.thoughts_end is not None:
        assert joined[: whole.thoughts_end].endswith(form.closing)
        assert answer == joined[whole.thoughts_end :].lstrip()
        assert form.closing not in thoughts
    if whole.answer_start is not None:
        assert joined[whole.answer_start :] == answer


@pytest.mark.parametrize("form", REASONING_FORMATS.values(), ids=lambda form: form.name)
def test_every_format_reads_what_its_markers_say(form: ReasoningFormat) -> None:
    assert parse([f"{form.opening}\nHm.\n{form.closing}\n\nYes."], form) == ("Hm.", "Yes.")
    assert form.state_behind(f"user: {form.opening}\nassistant:") is not ReasoningState.ANSWER


def test_formats_are_detected_in_templates() -> None:
    assert detect_reasoning_format("{{ messages }}") is None
    assert detect_reasoning_format("{{ messages }}<think>") is QWEN3
    assert detect_reasoning_format("{{ content.split('</think>')[-1] }}") is QWEN3
    assert detect_reasoning_format("[THINK]{{ x }}[/THINK]") is MISTRAL
    assert detect_reasoning_format("</seed:think>") is REASONING_FORMATS["seed_oss"]
