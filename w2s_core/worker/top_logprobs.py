"""The likeliest tokens behind some rows of logits, for those who ask."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from w2s_core.types import Alternatives
from w2s_core.worker.transfer import send


def top_logprobs(logits: torch.Tensor, count: int) -> list[Alternatives]:
    """`logits` (rows, vocab) in float32. Per row `count` tokens, best first, and their log-probabilities in nats."""
    values, tokens = logits.topk(min(count, logits.shape[1]), dim=1)
    values = values - logits.logsumexp(1, keepdim=True)
    return [
        tuple(zip(row_tokens, row_values, strict=True))
        for row_tokens, row_values in zip(tokens.tolist(), values.tolist(), strict=True)
    ]


def logprobs_and_ranks(logits: torch.Tensor, tokens: Sequence[int]) -> tuple[list[float], list[int]]:
    """Of one token per row: its log-probability in nats, and its rank, 1 + the number of likelier tokens."""
    chosen = logits.gather(1, send(tokens, logits.device)[:, None])
    nats = chosen - logits.logsumexp(1, keepdim=True)
    return nats[:, 0].tolist(), ((logits > chosen).sum(1) + 1).tolist()


def with_chosen(alternatives: Alternatives, token: int, logprob: float) -> Alternatives:
    """The same, the drawn token's log-probability being the one that the draw told, to the last bit."""
    return tuple((other, logprob if other == token else nats) for other, nats in alternatives)
