"""Maps `SamplingParams` to the fields of a completion call, by vLLM's names; rejects what a provider cannot do."""

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
_APPLIED_HERE = frozenset({"stop", "stop_behind", "include_stop_str_in_output", "skip_special_tokens", "logprobs"})
_RENAMED = frozenset({"grammar"})
_PUBLIC = frozenset(
    {"temperature", "top_p", "logit_bias", "max_tokens", "seed", "stop", "include_stop_str_in_output", "logprobs"}
)
_PUBLIC_MAX_LOGPROBS = 5  # OpenAI's limit


def check_public(sampling: SamplingParams, provider_name: str) -> None:
    """Raises RequestError for what OpenAI's public API does not offer, or not across several calls."""
    for field in fields(sampling):
        if field.name not in _PUBLIC and getattr(sampling, field.name) != getattr(_DEFAULTS, field.name):
            raise RequestError(f"The provider of `{provider_name}` does not support {field.name}.", field.name)
    if sampling.logprobs is not None and sampling.logprobs > _PUBLIC_MAX_LOGPROBS:
        raise RequestError(
            f"The provider of `{provider_name}` returns at most {_PUBLIC_MAX_LOGPROBS} log-probabilities.", "logprobs"
        )


def check_extras(sampling: SamplingParams, tokenizer: HFTokenizer, provider_name: str) -> None:
    """Raises RequestError for what vLLM computes from one call's tokens, which is wrong for an answer drawn in several
    calls."""
    check_token_ids(sampling, tokenizer.size)
    if sampling.presence_penalty:
        raise RequestError(
            f"The provider of `{provider_name}` cannot apply presence_penalty chunk by chunk.", "presence_penalty"
        )
    if any(len(word) > 1 for word in resolve_sampling(sampling, tokenizer, tokenizer.size).bad_words):
        raise RequestError(f"The provider of `{provider_name}` supports bad_words of one token only.", "bad_words")


def common_fields(sampling: SamplingParams) -> dict[str, Any]:
    """The fields that are the same in every call of an answer."""
    body: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    for field in fields(sampling):
        value = getattr(sampling, field.name)
        if field.name not in _PER_CALL | _APPLIED_HERE | _RENAMED and value != getattr(_DEFAULTS, field.name):
            body[field.name] = list(value) if isinstance(value, tuple) else value
    if sampling.grammar is not None:
        body["structured_outputs"] = _structured_outputs(sampling.grammar)
    return body


def per_call_fields(sampling: SamplingParams, parent: Hypothesis, length: int) -> dict[str, Any]:
    """The fields that depend on the answer so far, because a provider counts only the tokens of this call.

    The frequency penalty is additive, so the part for tokens that the answer has already is sent as a logit bias.
    """
    body: dict[str, Any] = {}
    bias = Counter[int]()
    bias.update(dict(sampling.logit_bias))
    if sampling.frequency_penalty:
        body["frequency_penalty"] = sampling.frequency_penalty
        bias.subtract({token: sampling.frequency_penalty * n for token, n in Counter(parent.tokens).items()})
    if bias:
        body["logit_bias"] = {str(token): value for token, value in bias.items()}
    if missing := max(0, sampling.min_tokens - len(parent.tokens)):
        body["min_tokens"] = min(missing, length)
    return body


def check_schema(grammar: Grammar) -> None:
    """Raises RequestError for a JSON schema that is not a JSON object."""
    if grammar.kind == "json":
        try:
            schema = json.loads(grammar.source)
        except (ValueError, RecursionError):
            schema = None
        if not isinstance(schema, dict):
            raise RequestError("A JSON schema must be an object.", grammar.field)


def _structured_outputs(grammar: Grammar) -> dict[str, Any]:
    """vLLM's field `structured_outputs`."""
    match grammar.kind:
        case "json_object":
            return {"json_object": True}
        case "json" | "choice":
            return {grammar.kind: json.loads(grammar.source)}
        case _:
            return {grammar.kind: grammar.source}
