"""Branch attention: rows that grow side by side attend to their own branches alone, without a mask.

Rows that are sampled from one prompt get their tokens' slots in turn, so that a branch is a column of the session's
region, and all branches together are a view of it:

    region: | prompt | a b c d | a b c d | a b c | a b c |      row d has ended after two tokens
                       run: 4 lanes, 2 tokens  run: 3 lanes, 2 tokens

A product over such a run reads each key for one row, and a product over the slots before the runs, which all rows
share, reads each key for all. Under one mask for all slots every row would read every other row's keys: sixteen times
as many for sixteen rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

_FEWEST_ROWS = 4
_MOST_RUNS = 8
_OVERHEAD = 2048  # what a run's products cost before they read a key, in keys read for one row
Slots = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Run:
    """Slots [start, start + lanes · tokens) of a region: one token of every lane, then the next of every lane.

    `lane_of` (N,) is each row's lane, and `index` the same as a tensor, None where the lanes are the rows, in order.
    Lanes of rows that have ended are read, too.
    """

    start: int
    lanes: int
    tokens: int
    lane_of: Slots
    index: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Branches:
    """How N rows attend: to slots [0, shared) of their region, and each to its lane of the runs.

    `masked`: not every row sees all shared slots.
    """

    shared: int
    masked: bool
    runs: tuple[Run, ...]


def find_branches(prompt: int, paths: Sequence[Slots], keys: int) -> Branches | None:
    """The branches of rows whose prompt is in slots [0, prompt) and whose answers' tokens are in the slots `paths`, of
    a region with `keys` slots in use.

    None where one product under a mask is as cheap, or the slots have no such order.
    """
    if len(paths) < _FEWEST_ROWS or len({len(path) for path in paths}) > 1 or not len(paths[0]):
        return None
    found: list[Run] = []
    best, cost = None, len(paths) * keys
    own = 0
    for run in _runs_from_the_end(np.stack(paths)):
        if len(found) == _MOST_RUNS or run.start + run.lanes * run.tokens > keys:
            break
        found.insert(0, run)
        own += run.lanes * run.tokens
        branches_cost = len(paths) * run.start + own + _OVERHEAD * (len(found) + 1)
        if branches_cost < cost:
            best, cost = Branches(run.start, run.start > prompt, tuple(found)), branches_cost
    return best


def _runs_from_the_end(slots: Slots) -> Iterator[Run]:
    """The longest runs in the rows' slots (N, tokens), the last one first, while a run is above all slots before it."""
    steps = np.diff(slots, axis=1)
    follows = (steps == steps[:1]).all(0)  # whether a token follows the one before it in the same lane
    end = slots.shape[1]
    while end:
        lanes = steps[0, end - 2] if end > 1 and follows[end - 2] else 0
        ends = np.flatnonzero(~follows[: end - 1] | (steps[0, : end - 1] != lanes))
        first = int(ends[-1]) + 1 if len(ends) else 0
        start = int(slots[:, first].min())
        lane_of = slots[:, first] - start
        if first == end - 1:  # one token of each
            lanes = lane_of.max() + 1
        in_order = not first or slots[:, :first].max() < start
        if not in_order or lane_of.max() >= lanes or len(np.unique(lane_of)) < len(lane_of):
            return
        in_place = lanes == len(lane_of) and (lane_of == np.arange(lanes)).all()
        yield Run(start, int(lanes), end - first, lane_of, None if in_place else torch.from_numpy(lane_of))
        end = first


def branch_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    branches: Branches,
    mask: torch.Tensor | None,
    *,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of rows over their branches.

    `query` (1, heads, N, dim); `keys` and `values` (slots, kv_heads, dim) from the region's first slot on; `mask`
    (N, shared), additive, None where the rows see all shared slots. Returns (1, N, heads, dim).
    """
    heads, rows, dim = query.shape[1:]
    kv_heads = keys.shape[1]
    scale = dim**-0.5 if scaling is None else scaling
    q = (query[0].transpose(0, 1) * scale).view(rows, kv_heads, heads // kv_heads, dim)
    scores = [_over_shared(q, keys[: branches.shared].permute(1, 2, 0))]
    if mask is not None:
        scores[0] = scores[0] + mask[:, None, None]
    scores += [_over_lanes(q, _view(keys, run).permute(1, 2, 3, 0), run.index) for run in branches.runs]
    shares = torch.softmax(torch.cat(scores, -1), -1).split_with_sizes([part.shape[-1] for part in scores], -1)
    output = _over_shared(shares[0], values[: branches.shared].transpose(0, 1))
    for share, run in zip(shares[1:], branches.runs, strict=True):
        output = output + _over_lanes(share, _view(values, run).permute(1, 2, 0, 3), run.index)
    return output.reshape(1, rows, heads, dim)


def _view(pool: torch.Tensor, run: Run) -> torch.Tensor:
    """The run's slots as (tokens, lanes, kv_heads, dim)."""
    return pool[run.start : run.start + run.lanes * run.tokens].view(run.tokens, run.lanes, *pool.shape[1:])


def _over_shared(rows: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Rows (N, kv_heads, groups, m) times (kv_heads, m, n), which they share: (N, kv_heads, groups, n)."""
    count, kv_heads, groups, _ = rows.shape
    product = torch.bmm(rows.transpose(0, 1).reshape(kv_heads, count * groups, -1), shared)
    return product.view(kv_heads, count, groups, -1).transpose(0, 1)


def _over_lanes(rows: torch.Tensor, lanes: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """Rows (N, kv_heads, groups, m) times their lanes of (lanes, kv_heads, m, n): (N, kv_heads, groups, n)."""
    if index is not None:
        rows = rows.new_zeros(len(lanes), *rows.shape[1:]).index_copy_(0, index, rows)
    product = torch.matmul(rows, lanes)
    return product if index is None else product[index]
