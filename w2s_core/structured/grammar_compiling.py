"""Grammars in the library's words (llguidance), and its limits. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from, regex_to_lark

from w2s_core.types import GrammarKind

# The library's own limits let a hostile pattern stall a worker's step for seconds. These stop it within a fraction of
# one, and schemas with a thousand properties or thousands of values still fit.
_LIMITS = LLParserLimits(initial_lexer_fuel=100_000, step_lexer_fuel=50_000, verbose_errors=False)
_ASCII = "dw"  # of a regular expression's classes: ASCII, as in JSON Schema's patterns
# Between JSON's tokens. Without a bound a weak model can go on with blanks for ever.
_BLANKS = r"[ \n\r\t]{1,32}"


def compiled(kind: GrammarKind, source: str) -> str:
    """The grammar as the library takes it, not yet checked. Raises ValueError."""
    match kind:
        case "json":
            return _of_schema(json.loads(source))
        case "json_object":
            return _of_schema({"type": "object"})
        case "regex":
            return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(source, _ASCII)}/")
        case "choice":
            return grammar_from("choice", source)
        case "grammar":
            return grammar_from("grammar", source)
        case "compiled":
            return source


def _of_schema(schema: Any) -> str:
    if not isinstance(schema, dict):
        raise ValueError("A JSON schema must be an object.")
    for part in _objects(schema):
        if _too_narrow(part):
            raise ValueError("Bounds of a number that leave less than 1 between them cannot exclude an integer.")
    # The library's own key would have it write something else than JSON, or not look at what it does not know.
    plain = {key: value for key, value in schema.items() if key != "x-guidance"}
    return LLMatcher.grammar_from_json_schema(plain, overrides={"whitespace_pattern": _BLANKS})


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _objects(part)


def _too_narrow(schema: dict[str, Any]) -> bool:
    """llguidance 1.9 lets 53 through where a number must be above 53 and at most 53.5; integers it gets right."""
    bounds = [schema.get(f"{kind}{end}") for end in ("inimum", "aximum") for kind in ("exclusiveM", "m")]
    above, least, below, most = (x if isinstance(x, int | float) else None for x in bounds)
    low = max((x for x in (above, least) if x is not None), default=None)
    high = min((x for x in (below, most) if x is not None), default=None)
    if low is None or high is None or high - low >= 1 or schema.get("type") == "integer":
        return False
    return any(x is not None and x in (low, high) and float(x).is_integer() for x in (above, below))


def new_tokenizer(tokenizer_json: str, eos: list[int], size: int | None = None) -> LLTokenizer:
    """`tokenizer_json`: the text of `tokenizer.json`. `size` of the masks, in tokens. Raises ValueError for kinds that
    the library does not know."""
    return LLTokenizer(tokenizer_json, n_vocab=size, eos_token=eos or None)


def new_matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """At the grammar's beginning. It never raises, but is in an error state if the grammar cannot be had."""
    return LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
