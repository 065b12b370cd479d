"""Top logprobs: the most likely tokens and their log-probabilities, for requests with `logprobs`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from w2s_core.types import Alternatives
from w2s_core.worker.transfer import long_tensor


def top_logprobs(logits: torch.Tensor, count: int) -> list[Alternatives]:
    """The `count` most likely tokens of each row of `logits` (rows, vocab, float32), best first, in nats."""
    values, tokens = logits.topk(min(count, logits.shape[1]), dim=1)
    values = values - logits.logsumexp(1, keepdim=True)
    return [
        tuple(zip(row_tokens, row_values, strict=True))
        for row_tokens, row_values in zip(tokens.tolist(), values.tolist(), strict=True)
    ]


def logprobs_and_ranks(logits: torch.Tensor, tokens: Sequence[int]) -> tuple[list[float], list[int]]:
    """The log-probability in nats and the rank of one given token per row. Rank 1 is the most likely token."""
    chosen = logits.gather(1, long_tensor(tokens, logits.device)[:, None])
    nats = chosen - logits.logsumexp(1, keepdim=True)
    return nats[:, 0].tolist(), ((logits > chosen).sum(1) + 1).tolist()


def with_drawn_logprob(alternatives: Alternatives, token: int, logprob: float) -> Alternatives:
    """`alternatives` with the drawn token's log-probability replaced by the sampler's.

    The two differ in the last bits, and clients compare them for equality.
    """
    return tuple((other, logprob if other == token else nats) for other, nats in alternatives)
