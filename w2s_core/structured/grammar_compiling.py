"""Translates grammars into llguidance's form, and sets the library's limits. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from, regex_to_lark

from w2s_core.types import GrammarKind

# The library's default limits let a hostile pattern stall a worker's step for seconds. These stop it within a fraction
# of a second, and schemas with a thousand properties or thousands of values still fit.
_LIMITS = LLParserLimits(initial_lexer_fuel=100_000, step_lexer_fuel=50_000, verbose_errors=False)
_ASCII_CLASSES = "dw"  # \d and \w match ASCII alone, as in JSON Schema's patterns
# Whitespace between JSON's tokens. Without a bound a weak model can write blanks for ever.
_WHITESPACE = r"[ \n\r\t]{1,32}"


def compile_grammar(kind: GrammarKind, source: str) -> str:
    """Returns the grammar in llguidance's form, not yet checked. Raises ValueError where it cannot be translated."""
    match kind:
        case "json":
            return _compile_schema(json.loads(source))
        case "json_object":
            return _compile_schema({"type": "object"})
        case "regex":
            return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(source, _ASCII_CLASSES)}/")
        case "choice":
            return grammar_from("choice", source)
        case "grammar":
            return grammar_from("grammar", source)
        case "compiled":
            return source


def _compile_schema(schema: Any) -> str:
    if not isinstance(schema, dict):
        raise ValueError("A JSON schema must be an object.")
    for part in _objects(schema):
        if _has_unsafe_bounds(part):
            raise ValueError(
                "An exclusive bound that is an integer must be at least 1 away from the number's other bound."
            )
    # llguidance's own key can make it write something other than JSON, or skip keywords that it does not know.
    plain = {key: value for key, value in schema.items() if key != "x-guidance"}
    return LLMatcher.grammar_from_json_schema(plain, overrides={"whitespace_pattern": _WHITESPACE})


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yields every object in a JSON value, at any depth."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _objects(part)


def _has_unsafe_bounds(schema: dict[str, Any]) -> bool:
    """Whether llguidance 1.9 could write a number outside of the bounds.

    It writes 53 where a number must be above 53 and at most 53.5. Integers it gets right.
    """
    bounds = [schema.get(key) for key in ("exclusiveMinimum", "minimum", "exclusiveMaximum", "maximum")]
    above, least, below, most = (x if isinstance(x, int | float) else None for x in bounds)
    low = max((x for x in (above, least) if x is not None), default=None)
    high = min((x for x in (below, most) if x is not None), default=None)
    if low is None or high is None or high - low >= 1 or schema.get("type") == "integer":
        return False
    return any(x is not None and x in (low, high) and float(x).is_integer() for x in (above, below))


def new_tokenizer(tokenizer_json: str, eos: list[int], size: int | None = None) -> LLTokenizer:
    """Builds llguidance's tokenizer from the text of `tokenizer.json`. `size`: tokens in a mask.

    Raises ValueError for kinds of tokenizer that the library does not know.
    """
    return LLTokenizer(tokenizer_json, n_vocab=size, eos_token=eos or None)


def new_matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Returns a matcher at the grammar's beginning. For a bad grammar it does not raise, but `is_error()` is true."""
    return LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
