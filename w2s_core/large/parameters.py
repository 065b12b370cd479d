"""What of a request's sampling a provider is asked for, by the names of vLLM; what it cannot do is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields
from typing import Any

from w2s_core.errors import RequestError
from w2s_core.large.token_sampling import check_token_ids, resolve_sampling
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Grammar, Hypothesis, SamplingParams

_DEFAULTS = SamplingParams()
_PER_CALL = frozenset({"max_tokens", "seed", "min_tokens", "frequency_penalty", "logit_bias"})
_DONE_HERE = frozenset({"stop", "include_stop_str_in_output", "skip_special_tokens", "logprobs"})
_RENAMED = frozenset({"grammar"})
_PUBLIC = frozenset(
    {"temperature", "top_p", "logit_bias", "max_tokens", "seed", "stop", "include_stop_str_in_output", "logprobs"}
)
_PUBLIC_LOGPROBS = 5  # OpenAI's most


def check_public(sampling: SamplingParams, who: str) -> None:
    """Raises RequestError for what OpenAI's public API cannot do, or not over several calls."""
    for field in fields(sampling):
        if field.name not in _PUBLIC and getattr(sampling, field.name) != getattr(_DEFAULTS, field.name):
            raise RequestError(f"The provider of `{who}` cannot honour {field.name}.", field.name)
    if sampling.logprobs is not None and sampling.logprobs > _PUBLIC_LOGPROBS:
        raise RequestError(f"The provider of `{who}` tells {_PUBLIC_LOGPROBS} log-probabilities at most.", "logprobs")


def check_extras(sampling: SamplingParams, tokenizer: HFTokenizer, who: str) -> None:
    """Raises RequestError for what vLLM does by what *one call* has drawn, so that it is another thing over several."""
    check_token_ids(sampling, tokenizer.size)
    if sampling.presence_penalty:
        raise RequestError(
            f"The provider of `{who}` cannot honour presence_penalty chunk by chunk.", "presence_penalty"
        )
    if any(len(word) > 1 for word in resolve_sampling(sampling, tokenizer, tokenizer.size).bad_words):
        raise RequestError(f"The provider of `{who}` can avoid words of one token only.", "bad_words")


def asked_of_all(sampling: SamplingParams) -> dict[str, Any]:
    """The same in every call."""
    asked: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    for field in fields(sampling):
        value = getattr(sampling, field.name)
        if field.name not in _PER_CALL | _DONE_HERE | _RENAMED and value != getattr(_DEFAULTS, field.name):
            asked[field.name] = list(value) if isinstance(value, tuple) else value
    if sampling.grammar is not None:
        asked["structured_outputs"] = _structured(sampling.grammar)
    return asked


def check_schema(grammar: Grammar) -> None:
    """Raises RequestError for a JSON schema that is no JSON object."""
    if grammar.kind == "json":
        try:
            found = json.loads(grammar.source)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise RequestError("A JSON schema must be an object.", grammar.field)


def _structured(grammar: Grammar) -> dict[str, Any]:
    match grammar.kind:
        case "json_object":
            return {"json_object": True}
        case "json" | "choice":
            return {grammar.kind: json.loads(grammar.source)}
        case _:
            return {grammar.kind: grammar.source}


def asked_of_one(sampling: SamplingParams, parent: Hypothesis, length: int) -> dict[str, Any]:
    """What depends on how far the answer is: a provider counts only what it draws in this call."""
    asked: dict[str, Any] = {}
    bias = Counter[int]()
    bias.update(dict(sampling.logit_bias))
    if sampling.frequency_penalty:  # additive, so what the answer has already can be a bias
        asked["frequency_penalty"] = sampling.frequency_penalty
        bias.subtract({token: sampling.frequency_penalty * n for token, n in Counter(parent.tokens).items()})
    if bias:
        asked["logit_bias"] = {str(token): value for token, value in bias.items()}
    if missing := max(0, sampling.min_tokens - len(parent.tokens)):
        asked["min_tokens"] = min(missing, length)
    return asked
