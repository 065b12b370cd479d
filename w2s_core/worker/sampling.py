"""Sampling: temperature, top_k and top_p, and the draw of one token per row by inverse transform.

The uniform number of each draw is given by the caller (`w2s_core.search.randomness`), so that a row's token depends on
its own logits, parameters and number, and on no other row of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from w2s_core.pool.messages import Sampling
from w2s_core.worker.inverse_transform import inverse_transform, inverse_transform_among
from w2s_core.worker.logits_processors import LogitsProcessor, process_logits
from w2s_core.worker.transfer import long_tensor, to_device

_MIN_TEMPERATURE = 1e-5  # smaller ones divide logits into infinities; they mean greedy decoding, as in vLLM
_PRESORTED = 1024  # tokens sorted at first: top_p rarely needs more, and sorting the whole vocabulary is slow


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row's token is drawn. `number` is uniform in [0, 1); `processor` changes the row's logits first.

    `steered`: its logits are not the model's own, but have been changed by experts.
    """

    sampling: Sampling
    number: float
    processor: LogitsProcessor | None = None
    steered: bool = False


def draw_tokens(
    logits: torch.Tensor, draws: Sequence[Draw], own_logits: torch.Tensor | None = None
) -> tuple[list[int], list[float]]:
    """Draws one token per row of `logits` (rows, vocab, float32).

    Returns the tokens and their log-probabilities in nats, before temperature and logits processors, and of the
    model's `own_logits` where the row is steered. They are not finite where any of the row's logits are not.
    """
    tokens, logprobs = _draw(logits, draws)
    if own_logits is not None:
        steered = to_device(torch.tensor([draw.steered for draw in draws]), logits.device)
        logprobs = torch.where(steered & logprobs.isfinite(), _logprobs(own_logits, tokens), logprobs)
    drawn = torch.stack([tokens.double(), logprobs.double()])  # one read from the device; float64 holds both exactly
    ids, nats = drawn.tolist()
    return [int(token) for token in ids], nats


_Sampler = Callable[[torch.Tensor, Sequence[Draw]], tuple[torch.Tensor, torch.Tensor]]


def _draw(logits: torch.Tensor, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    """`draw_tokens` on the device: groups the rows by sampler and runs each sampler once."""
    tokens = torch.empty(len(draws), dtype=torch.long, device=logits.device)
    logprobs = torch.empty(len(draws), device=logits.device)
    samplers = [_sampler(draw) for draw in draws]
    for sampler in dict.fromkeys(samplers):
        rows = [i for i, s in enumerate(samplers) if s is sampler]
        if len(rows) == len(draws):
            tokens, logprobs = sampler(logits, draws)
        else:
            index = long_tensor(rows, logits.device)
            tokens[index], logprobs[index] = sampler(logits[index], [draws[i] for i in rows])
    return tokens, logprobs


def _sampler(draw: Draw) -> _Sampler:
    """The cheapest sampler that does what the row asks for."""
    sampling = draw.sampling
    if draw.processor is not None:
        return _sample_processed
    if sampling.temperature < _MIN_TEMPERATURE:
        return _sample_greedy
    if sampling.top_k > 0 or sampling.top_p < 1:
        return _sample_top
    return _sample_plain if sampling.temperature == 1 else _sample_with_temperature


def _sample_processed(logits: torch.Tensor, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    """Applies the rows' logits processors, then draws. Log-probabilities are those of the unchanged logits."""
    changed = process_logits(logits, [draw.processor for draw in draws if draw.processor is not None])
    tokens, _ = _draw(changed, [Draw(draw.sampling, draw.number) for draw in draws])
    return tokens, _logprobs(logits, tokens)


def _sample_greedy(logits: torch.Tensor, _draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = logits.argmax(1)
    return tokens, _logprobs(logits, tokens)


def _sample_plain(logits: torch.Tensor, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    """Temperature 1: one softmax gives both the draw and its log-probability."""
    probabilities = logits.softmax(1)
    tokens = inverse_transform(probabilities, [draw.number for draw in draws])
    return tokens, probabilities.gather(1, tokens[:, None])[:, 0].log()


def _sample_with_temperature(logits: torch.Tensor, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    probabilities = (logits / _column([d.sampling.temperature for d in draws], logits)).softmax(1)
    tokens = inverse_transform(probabilities, [draw.number for draw in draws])
    return tokens, _logprobs(logits, tokens)


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(rows,), in nats, of one token per row."""
    return logits.gather(1, tokens[:, None])[:, 0] - _logsumexp(logits)[:, 0]


def _logsumexp(logits: torch.Tensor) -> torch.Tensor:
    """(rows, 1). torch's own takes three times as long where logits are masked by −inf."""
    return logits.amax(1, keepdim=True) - logits.softmax(1).amax(1, keepdim=True).log()


def _sample_top(logits: torch.Tensor, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    """Temperature, then top_k, then top_p of what is left: the order of vLLM and transformers."""
    scaled = logits / _column([d.sampling.temperature for d in draws], logits)
    vocabulary = logits.shape[1]
    limits = [min(d.sampling.top_k, vocabulary) or vocabulary for d in draws]
    top_k = long_tensor(limits, logits.device)[:, None]
    top_p = _column([d.sampling.top_p for d in draws], logits)
    # On a GPU, sorting everything is faster than reading back whether the presorted tokens suffice.
    presorted = _PRESORTED if logits.device.type == "cpu" else vocabulary
    size = min(vocabulary, max(presorted if limit == vocabulary else limit for limit in limits))
    best, index = scaled.topk(size, dim=1)
    whole = _logsumexp(scaled)
    if size < vocabulary and vocabulary in limits:  # a nucleus larger than the presorted tokens needs the rest
        mass = (_logsumexp(best) - whole).exp()
        if bool(((mass < top_p) & (top_k == vocabulary)).any()):
            best, index = scaled.sort(dim=1, descending=True, stable=True)
    ranks = torch.arange(best.shape[1], device=logits.device)
    kept = best.masked_fill(ranks >= top_k, float("-inf"))
    # Without top_k, top_p is relative to the whole vocabulary, even if only some tokens were sorted.
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
    """(rows, 1), of the type and on the device of `like`."""
    return to_device(torch.tensor(values, dtype=like.dtype), like.device)[:, None]
