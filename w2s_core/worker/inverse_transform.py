"""Inverse transform sampling down a tree of partial sums, so that rounding hardly ever changes a drawn token.

A forward pass rounds differently for every batch shape: logits differ by about 1e-5. Cumulating 50,000 probabilities
turns that into 50,000 boundaries that each move a little, and one draw in 300 lands on the other side of one (measured
on SmolLM2-135M). Here tokens are the leaves of a tree with 16 children per node. A draw descends from the root, with a
uniform number of its own at each level, and can cross a boundary only among 16 siblings: one draw in 70,000.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad

from w2s_core.search.randomness import derived_uniform
from w2s_core.worker.transfer import to_device

_CHILDREN = 16


def inverse_transform(probabilities: torch.Tensor, numbers: Sequence[float]) -> torch.Tensor:
    """One token per row of `probabilities` (rows, vocab), which need not sum to 1. Returns (rows,).

    `numbers` are uniform in [0, 1), one per row. A token of probability 0 is never drawn.
    """
    sums = [_in_groups(probabilities)]  # each level (rows, groups, children), leaves first
    while sums[-1].shape[1] > 1:
        sums.append(_in_groups(sums[-1].sum(2)))
    tokens = torch.zeros(len(probabilities), dtype=torch.long, device=probabilities.device)
    for level, children in enumerate(reversed(sums)):
        siblings = children.gather(1, tokens[:, None, None].expand(-1, 1, _CHILDREN))[:, 0]
        tokens = tokens * _CHILDREN + _choose(siblings, _uniform(numbers, level, probabilities))
    return tokens


def inverse_transform_among(
    probabilities: torch.Tensor, tokens: torch.Tensor, vocabulary: int, numbers: Sequence[float]
) -> torch.Tensor:
    """`inverse_transform` where only `tokens` (rows, n) have `probabilities` (rows, n). The cost grows with n."""
    depth = _depth(vocabulary)
    chosen = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    child = torch.arange(_CHILDREN, device=tokens.device)
    for level in range(depth):
        branch = tokens.div(_CHILDREN ** (depth - 1 - level), rounding_mode="floor") % _CHILDREN
        siblings = (probabilities[:, :, None] * (branch[:, :, None] == child)).sum(1)
        choice = _choose(siblings, _uniform(numbers, level, probabilities))
        probabilities = probabilities * (branch == choice[:, None])
        chosen = chosen * _CHILDREN + choice
    return chosen


def _depth(vocabulary: int) -> int:
    depth = 1
    while _CHILDREN**depth < vocabulary:
        depth += 1
    return depth


def _uniform(numbers: Sequence[float], level: int, like: torch.Tensor) -> torch.Tensor:
    """Each row's number for this level, (rows, 1)."""
    values = torch.tensor([derived_uniform(number, level) for number in numbers], dtype=like.dtype)
    return to_device(values, like.device)[:, None]


def _in_groups(values: torch.Tensor) -> torch.Tensor:
    """(rows, n) as (rows, ⌈n / children⌉, children), padded with zeros."""
    missing = -values.shape[1] % _CHILDREN
    padded = pad(values, (0, missing)) if missing else values
    return padded.reshape(len(values), -1, _CHILDREN)


def _choose(siblings: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first of the siblings (rows, children) whose cumulative sum exceeds `uniform` (rows, 1) of the total."""
    cumulative = siblings.cumsum(1)
    possible = siblings > 0
    exceeds = (cumulative > uniform * cumulative[:, -1:]) & possible
    # Where rounding leaves none, the last possible sibling is taken.
    last = possible & (possible.long().cumsum(1) == possible.sum(1, keepdim=True))
    return (exceeds | last).long().argmax(1)
