"""Token budget of a request: prompt truncation, and how many tokens an answer may have.

The budget is bounded by the large model's context, the pair's context, and the tokens that a request may sample in all.
Each function raises RequestError, naming the field.
"""

from __future__ import annotations

from w2s_core.engine.guidance import searches
from w2s_core.errors import ContextLengthError, RequestError
from w2s_core.interfaces import LargeModel
from w2s_core.search.selection import survivors
from w2s_core.types import ChatPrompt, GenerationRequest, Guidance, Prompt, Tokens

_LONG_CHUNK = 1000  # longer than what any provider draws to spare


def truncated_length(request: GenerationRequest, tokens: Tokens, large: LargeModel) -> int:
    """How many tokens of the prompt, counted from its end, are used (vLLM's `truncate_prompt_tokens`)."""
    limit = request.truncate_prompt_tokens
    if limit is None:
        return len(tokens)
    if large.count_tokens(tokens) != len(tokens):
        raise RequestError(
            "This prompt cannot be truncated: only the model's provider can count its tokens.",
            "truncate_prompt_tokens",
        )
    if limit > large.context_length:
        raise RequestError(
            f"truncate_prompt_tokens ({limit}) exceeds the model's context of {large.context_length} tokens.",
            "truncate_prompt_tokens",
        )
    if limit < 0:
        limit = max(1, large.context_length - (request.sampling.max_tokens or _default_room(request, large)))
    return min(limit, len(tokens))


def _default_room(request: GenerationRequest, large: LargeModel) -> int:
    """Tokens for an answer without `max_tokens`: a default leaves the prompt at least half of the context."""
    return min(request.default_max_tokens or 1, max(1, large.context_length // 2))


def context_budget(request: GenerationRequest, prompt: Prompt, tokens: Tokens, large: LargeModel) -> int:
    """`max_tokens`, or without it what fits the large model's context behind the prompt, up to the default."""
    free = large.context_length - large.count_tokens(tokens)
    max_tokens = request.sampling.max_tokens
    needed = 1 if max_tokens is None else max_tokens
    if free < needed:
        field = "messages" if isinstance(prompt, ChatPrompt) else "prompt"
        raise ContextLengthError(large.context_length, large.count_tokens(tokens), needed, field)
    return min(free, request.default_max_tokens or free) if max_tokens is None else max_tokens


def cap_to_sampled_tokens(
    request: GenerationRequest, guidance: Guidance | None, budget: int, server_limit: int | None, large: LargeModel
) -> int:
    """The budget, capped so that the request cannot sample more tokens than it may, whatever the search prunes.

    The limits are `Guidance.max_sampled_tokens` and the server's own; the lower one holds.
    """
    request_limit = guidance.max_sampled_tokens if guidance else None
    limits = [limit for limit in (request_limit, server_limit) if limit is not None]
    if not limits or not budget:
        return budget
    sequences = _sequences_per_prompt(request, guidance) * len(request.prompts)
    drawn = min(limits) // sequences
    if drawn < 1:
        raise RequestError(
            f"This request samples {sequences} sequences but may sample only {min(limits)} tokens in total: "
            "not one token for each.",
            _field_of_sequences(request, guidance, min(limits)),
        )
    if not searches(guidance):
        return min(budget, large.longest_answer(drawn, None))
    if guidance.method == "best_of_n":
        if guidance.chunked:
            limit = min(limits) // len(request.prompts)
            return min(budget, _longest_with_rejection(guidance, request.n, limit, budget, large))
        return min(budget, large.longest_answer(drawn, drawn))
    return min(budget, large.longest_answer(drawn, guidance.chunk_length))


def _longest_with_rejection(guidance: Guidance, n: int, limit: int, budget: int, large: LargeModel) -> int:
    """The length, up to `budget` or a chunk more, of an answer whose search with early rejection draws at most `limit`
    tokens."""
    rows, chunk, length = guidance.successors, guidance.chunk_length, 0
    spare = 2 * _LONG_CHUNK - large.longest_answer(2 * _LONG_CHUNK, _LONG_CHUNK)  # what is drawn beyond a chunk
    while length < budget and limit >= rows * (chunk + spare):
        limit -= rows * (chunk + spare)
        length += chunk
        rows = min(rows, max(n, survivors(guidance, rows)))
    return length + min(chunk, limit // rows)


def _sequences_per_prompt(request: GenerationRequest, guidance: Guidance | None) -> int:
    if not searches(guidance):
        return request.n
    return guidance.rows if guidance.method == "cbs" else guidance.successors


def _field_of_sequences(request: GenerationRequest, guidance: Guidance | None, limit: int) -> str:
    """The field to change in a request that may not sample one token, of `limit` in all, for each sequence."""
    if guidance is not None and guidance.max_sampled_tokens == limit:
        return "guidance.max_sampled_tokens"
    if _sequences_per_prompt(request, guidance) <= limit:
        return "prompt"
    return "guidance" if searches(guidance) else "n"


def check_min_tokens(request: GenerationRequest, budget: int) -> None:
    """Refuses a `min_tokens` that the budget does not allow."""
    if request.sampling.min_tokens > budget:
        raise RequestError(
            f"min_tokens ({request.sampling.min_tokens}) exceeds the {budget} tokens that the answer may have.",
            "min_tokens",
        )
