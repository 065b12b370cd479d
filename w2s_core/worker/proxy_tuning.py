"""Proxy tuning (EFT): adds experts' logits to the large model's, so that a pair steers the draw of every token.

z = z_base + Σ_j β_j · (z_tuned,j − z_untuned,j), then penalties, temperature, top_p and the rest (Mitchell et al. 2023,
arXiv:2310.12962; Liu et al. 2024, arXiv:2401.08565). Each model of a pair is an expert, with the weight β_j or −β_j.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch

from w2s_core.worker.batch import Batch
from w2s_core.worker.tasks import ExpertTask, RowState, SampleTask
from w2s_core.worker.transfer import long_tensor, select_rows, to_device

# Added to the logits of implausible tokens: enough that none is drawn, unless masks leave no other token.
_IMPLAUSIBLE = -1e4


def collect_expert_logits(batch: Batch, logits: torch.Tensor, tasks: Sequence[ExpertTask]) -> None:
    """Gives each expert task the logits that it needs and that are in the batch."""
    found = [(task, row, index) for task in tasks for row, index in task.found(batch.logits_rows)]
    if not found:
        return
    kept = select_rows(logits, [index for _, _, index in found])  # those of the batch's other tokens can be freed
    for i, (task, row, _) in enumerate(found):
        task.logits[row.index] = kept, i


def combine_logits(logits: torch.Tensor, rows: Sequence[tuple[SampleTask, RowState]]) -> torch.Tensor:
    """`logits` (rows, vocab) with those of each row's experts added; `logits` itself if no row has any.

    Every row's experts are added in their own order, so that rounding does not depend on the batch.
    """
    most = max(len(task.experts) for task, _ in rows)
    if not most:
        return logits
    combined = logits.clone()
    for position in range(most):
        _add_experts(combined, [(task.experts[position:][:1], row) for task, row in rows])
    _apply_plausibility(combined, logits, [task.job.sampling.plausibility for task, _ in rows])
    return combined


def _add_experts(combined: torch.Tensor, rows: Sequence[tuple[Sequence[ExpertTask], RowState]]) -> None:
    """Adds to each row the weighted logits of its expert, if it has one, in place. Rows of one forward go together."""
    groups: dict[tuple[int, int], list[tuple[int, int, float]]] = defaultdict(list)
    tensors: dict[int, torch.Tensor] = {}
    for i, (experts, row) in enumerate(rows):
        for task in experts:
            tensor, index = task.logits[row.index]
            tensors[id(tensor)] = tensor
            groups[id(tensor), task.expert.vocabulary].append((i, index, task.expert.weight))
    for (key, vocabulary), group in groups.items():
        size = min(vocabulary, combined.shape[1])
        numbers, indices, weights = zip(*group, strict=True)
        column = to_device(torch.tensor(weights, dtype=combined.dtype), combined.device)[:, None]
        added = select_rows(tensors[key], list(indices))[:, :size] * column
        combined[:, :size].index_add_(0, long_tensor(numbers, combined.device), added)


def _apply_plausibility(combined: torch.Tensor, logits: torch.Tensor, fractions: Sequence[float]) -> None:
    """Rules out, in place, the tokens of which π_base is less than that fraction of the most likely one's.

    It is the mask of contrastive decoding (Li et al. 2022, arXiv:2210.15097, section 3.3).
    """
    if any(fractions):
        floors = [math.log(fraction) if fraction else -math.inf for fraction in fractions]
        column = to_device(torch.tensor(floors, dtype=logits.dtype), logits.device)[:, None]
        combined += (logits < logits.amax(1, keepdim=True) + column) * _IMPLAUSIBLE
