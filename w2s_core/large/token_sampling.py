"""Resolves `SamplingParams` for one model: checks token ids against its vocabulary, turns bad words into tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from w2s_core.errors import RequestError
from w2s_core.pool.messages import Sampling
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import SamplingParams, Tokens

_MAX_NAMED_IDS = 10  # in an error message
_ID_FIELDS = ("logit_bias", "stop_token_ids", "allowed_token_ids")


def resolve_sampling(sampling: SamplingParams, tokenizer: HFTokenizer, vocabulary: int) -> Sampling:
    """Returns the sampling parameters as a worker takes them. `vocabulary`: the number of the model's logits."""
    return Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=sampling.logit_bias,
        min_tokens=sampling.min_tokens,
        ignore_eos=sampling.ignore_eos,
        stop_token_ids=sampling.stop_token_ids,
        allowed_token_ids=sampling.allowed_token_ids,
        bad_words=_bad_word_tokens(sampling.bad_words, tokenizer, vocabulary),
        alternatives=sampling.logprobs or 0,
        grammar=sampling.grammar,
    )


def check_token_ids(sampling: SamplingParams, size: int) -> None:
    """Raises RequestError, naming the field and the ids, for token ids that are not in [0, size)."""
    for field in _ID_FIELDS:
        if wrong := [token for token in _ids(sampling, field) if not 0 <= token < size]:
            named = ", ".join(map(str, wrong[:_MAX_NAMED_IDS]))
            more = f" and {len(wrong) - _MAX_NAMED_IDS:,} more" if len(wrong) > _MAX_NAMED_IDS else ""
            raise RequestError(f"There is no token {named}{more}: ids are between 0 and {size - 1}.", field)


def check_possible(sampling: Sampling, eos: Collection[int], vocabulary: int) -> None:
    """Raises RequestError, naming the field, unless some token may be drawn at every position of every answer."""
    allowed = sampling.allowed_token_ids
    possible = set(range(vocabulary) if allowed is None else allowed)
    possible.difference_update(word[-1] for word in sampling.bad_words)
    if sampling.min_tokens > 0:
        possible.difference_update(eos, sampling.stop_token_ids)
    if not possible:
        field = "allowed_token_ids" if allowed is not None else "bad_words" if sampling.bad_words else "stop_token_ids"
        raise RequestError("These restrictions could leave no token to draw.", field)


def _ids(sampling: SamplingParams, field: str) -> Sequence[int]:
    if field == "logit_bias":
        return [token for token, _ in sampling.logit_bias]
    return getattr(sampling, field) or ()


def _bad_word_tokens(words: Sequence[str], tokenizer: HFTokenizer, vocabulary: int) -> tuple[Tokens, ...]:
    """Each word's tokens at the beginning of a text and, where they differ, after a space (as in vLLM)."""
    sequences: list[Tokens] = []
    for word in words:
        bare = word.lstrip() or word
        first, spaced = tokenizer.encode_continuations([bare, " " + bare])
        sequences.append(first)
        if len(spaced) == len(first) and spaced[0] != first[0]:
            sequences.append(spaced)
    return tuple(dict.fromkeys(tokens for tokens in sequences if tokens and max(tokens) < vocabulary))
