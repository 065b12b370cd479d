"""Draws tokens by inverse transform: one uniform number per token, given from outside (`w2s_core.search.randomness`).

A row's token depends on its own logits, parameters and number, and on no other row of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from w2s_core.pool.messages import Sampling
from w2s_core.worker.inverse_transform import inverse_transform, inverse_transform_among
from w2s_core.worker.logits_processors import LogitsProcessor, process_logits
from w2s_core.worker.transfer import moved, send

_COLDEST = 1e-5  # below this a temperature divides logits into infinities; it is greedy, as in vLLM
_FIRST_TRY = 1024  # top_p rarely needs more tokens than these; sorting the whole vocabulary is slow


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row is drawn; `number` is uniform in [0, 1). `adjustment` changes its logits first."""

    sampling: Sampling
    number: float
    adjustment: LogitsProcessor | None = None


def draw_tokens(logits: torch.Tensor, draws: Sequence[Draw]) -> tuple[list[int], list[float]]:
    """`logits` (rows, vocab) in float32. Returns each row's token and its log-probability in nats, before temperature
    and adjustment."""
    tokens, logprobs = _draw(logits, draws)
    drawn = torch.stack([tokens.double(), logprobs.double()])  # both in one read; either is exact in float64
    ids, nats = drawn.tolist()
    return [int(token) for token in ids], nats


def _draw(logits: torch.Tensor, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.empty(len(draws), dtype=torch.long, device=logits.device)
    logprobs = torch.empty(len(draws), device=logits.device)
    kinds = [_kind(draw) for draw in draws]
    for kind in dict.fromkeys(kinds):
        rows = [i for i, k in enumerate(kinds) if k is kind]
        if len(rows) == len(draws):
            tokens, logprobs = kind(logits, draws)
        else:
            index = send(rows, logits.device)
            tokens[index], logprobs[index] = kind(logits[index], [draws[i] for i in rows])
    return tokens, logprobs


def _kind(draw: Draw) -> Callable[[torch.Tensor, Sequence[Draw]], tuple[torch.Tensor, torch.Tensor]]:
    sampling = draw.sampling
    if draw.adjustment is not None:
        return _adjusted
    if sampling.temperature < _COLDEST:
        return _greedy
    if sampling.top_k > 0 or sampling.top_p < 1:
        return _from_best
    return _plain if sampling.temperature == 1 else _from_all


def _adjusted(logits: torch.Tensor, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    changed = process_logits(logits, [draw.adjustment for draw in draws if draw.adjustment is not None])
    tokens, _ = _draw(changed, [Draw(draw.sampling, draw.number) for draw in draws])
    return tokens, _logprobs(logits, tokens)


def _greedy(logits: torch.Tensor, _draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = logits.argmax(1)
    return tokens, _logprobs(logits, tokens)


def _plain(logits: torch.Tensor, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    """Temperature 1: one pass gives both the draw and its log-probability."""
    probabilities = logits.softmax(1)
    tokens = inverse_transform(probabilities, [draw.number for draw in draws])
    return tokens, probabilities.gather(1, tokens[:, None])[:, 0].log()


def _from_all(logits: torch.Tensor, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    probabilities = (logits / _column([d.sampling.temperature for d in draws], logits)).softmax(1)
    tokens = inverse_transform(probabilities, [draw.number for draw in draws])
    return tokens, _logprobs(logits, tokens)


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logits.gather(1, tokens[:, None])[:, 0] - _logsumexp(logits)[:, 0]


def _logsumexp(logits: torch.Tensor) -> torch.Tensor:
    """(rows, 1). Where logits are masked by −inf, torch's own takes three times as long."""
    return logits.amax(1, keepdim=True) - logits.softmax(1).amax(1, keepdim=True).log()


def _from_best(logits: torch.Tensor, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    """top_k, then top_p of what is left, as OpenAI, vLLM and transformers order them."""
    scaled = logits / _column([d.sampling.temperature for d in draws], logits)
    vocabulary = logits.shape[1]
    limits = [min(d.sampling.top_k, vocabulary) or vocabulary for d in draws]
    top_k = send(limits, logits.device)[:, None]
    top_p = _column([d.sampling.top_p for d in draws], logits)
    # A GPU sorts everything sooner than it can be asked whether the best few were enough.
    first_try = _FIRST_TRY if logits.device.type == "cpu" else vocabulary
    size = min(vocabulary, max(first_try if limit == vocabulary else limit for limit in limits))
    best, index = scaled.topk(size, dim=1)
    whole = _logsumexp(scaled)
    if size < vocabulary and vocabulary in limits:  # a nucleus larger than the best few needs the rest
        mass = (_logsumexp(best) - whole).exp()
        if bool(((mass < top_p) & (top_k == vocabulary)).any()):
            best, index = scaled.sort(dim=1, descending=True, stable=True)
    ranks = torch.arange(best.shape[1], device=logits.device)
    kept = best.masked_fill(ranks >= top_k, float("-inf"))
    # Without top_k the nucleus is measured against the whole vocabulary, even where only the best were sorted.
    total = torch.where(top_k == vocabulary, whole, _logsumexp(kept))
    probabilities = (kept - total).exp()
    before = probabilities.cumsum(1) - probabilities
    outside = (before >= top_p) & (ranks > 0)
    probabilities = probabilities.masked_fill(outside, 0.0)
    # Drawn in the order of the vocabulary: in that of probability, rounding would exchange neighbours.
    numbers = [draw.number for draw in draws]
    if best.shape[1] < vocabulary:
        tokens = inverse_transform_among(probabilities, index, vocabulary, numbers)
    else:
        tokens = inverse_transform(torch.zeros_like(logits).scatter_(1, index, probabilities), numbers)
    return tokens, _logprobs(logits, tokens)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return moved(torch.tensor(values, dtype=like.dtype), like.device)[:, None]
