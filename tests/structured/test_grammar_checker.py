"""The grammar checker and its process: what it accepts, and that a grammar which kills it harms no other."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from tests.tiny import EOS, byte_tokenizer
from w2s_core.errors import RequestError
from w2s_core.structured.grammar_checker import GrammarChecker
from w2s_core.types import Grammar, GrammarKind

TOKENIZATION = byte_tokenizer().backend_tokenizer.to_str()


@pytest.fixture
async def checker() -> AsyncIterator[GrammarChecker]:
    subject = GrammarChecker(TOKENIZATION, EOS)
    await subject.start()
    yield subject
    await subject.stop()


def process_of(checker: GrammarChecker) -> int:
    assert checker._process is not None
    return checker._process.pid


async def refusal(checker: GrammarChecker, kind: GrammarKind, source: str) -> str:
    with pytest.raises(RequestError) as refused:
        await checker.check(Grammar(kind, source, "its_field"))
    assert refused.value.param == "its_field"
    return str(refused.value)


async def test_good_grammars_come_back_compiled_and_cost_no_second_check(checker: GrammarChecker) -> None:
    assert checker._process is None, "most servers are never asked"
    first = await checker.check(Grammar("regex", "a+b", "f"))
    assert (first.kind, first.field) == ("compiled", "f")
    process = process_of(checker)
    os.kill(process, signal.SIGKILL)
    assert await checker.check(Grammar("regex", "a+b", "f")) == first, "remembered: nobody has to be asked"


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "(("),
        ("json", "{"),
        ("json", "[]"),
        ("json", '{"type": "nothing"}'),
        ("json", '{"type": "string", "format": "poem"}'),
        ("json", '{"type": "integer", "minimum": 3, "maximum": 2}'),
        ("json", '{"minimum": NaN, "type": "number"}'),
        ("json", "[" * 20_000),
        ("grammar", "start: nobody"),
        ("grammar", ""),
    ],
)
async def test_malformed_ones_are_refused_and_the_process_lives(
    checker: GrammarChecker, kind: GrammarKind, source: str
) -> None:
    await checker.check(Grammar("regex", "a", "f"))
    process = process_of(checker)
    assert await refusal(checker, kind, source)
    assert process_of(checker) == process


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json", '{"type": "integer", "multipleOf": 123456789}'),  # takes for ever
        ("grammar", "start: A0\n" + "\n".join(f'A{i}: "a" A{i + 1} "b"' for i in range(5000)) + '\nA5000: "c"'),
    ],
    ids=["time", "stack"],
)
async def test_what_it_dies_of_is_refused_and_the_next_one_is_served(
    checker: GrammarChecker, kind: GrammarKind, source: str
) -> None:
    await checker.check(Grammar("regex", "a", "f"))
    process = process_of(checker)
    assert "too complex" in await refusal(checker, kind, source)
    assert (await checker.check(Grammar("regex", "b", "f"))).kind == "compiled"
    assert process_of(checker) != process


@pytest.mark.parametrize(
    ("fits", "too_narrow"),
    [
        ('"exclusiveMinimum": 1, "maximum": 2', '"exclusiveMinimum": 1, "maximum": 1.5'),
        ('"minimum": 1, "exclusiveMaximum": 2', '"minimum": 1.5, "exclusiveMaximum": 2'),
    ],
)
async def test_bounds_of_a_number_must_be_at_least_1_apart_if_one_excludes_an_integer(
    checker: GrammarChecker, fits: str, too_narrow: str
) -> None:
    assert await checker.check(Grammar("json", f'{{"type": "number", {fits}}}', "f"))
    assert "at least 1 away" in await refusal(checker, "json", f'{{"type": "number", {too_narrow}}}')


async def test_one_that_is_too_long_is_not_even_asked_about(checker: GrammarChecker) -> None:
    assert "at most" in await refusal(checker, "regex", "a" * 200_000)
    assert checker._process is None


async def test_a_process_that_was_killed_comes_back(checker: GrammarChecker) -> None:
    await checker.check(Grammar("regex", "a", "f"))
    os.kill(process_of(checker), signal.SIGKILL)
    with pytest.raises(RequestError):  # whoever was asking then is told to ask for less: nobody knows why it died
        await checker.check(Grammar("regex", "b", "f"))
    assert (await checker.check(Grammar("regex", "b", "f"))).kind == "compiled"


async def test_questions_at_once_are_answered_each_with_its_own(checker: GrammarChecker) -> None:
    sources = [f"a{{{number}}}" for number in range(1, 9)]
    several = await asyncio.gather(*(checker.check(Grammar("regex", source, "f")) for source in sources))
    assert len({grammar.source for grammar in several}) == len(sources)
    assert [checker._cache["regex", source] for source in sources] == [grammar.source for grammar in several]


async def test_a_tokenizer_that_it_does_not_know_is_told_by_the_field() -> None:
    subject = GrammarChecker('{"model": {"type": "poem"}}', None)
    assert "tokenizer" in await refusal(subject, "regex", "a")
    await subject.stop()


async def test_stopping_leaves_no_process() -> None:
    subject = GrammarChecker(TOKENIZATION, EOS)
    await subject.check(Grammar("regex", "a", "f"))
    process = process_of(subject)
    await subject.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
