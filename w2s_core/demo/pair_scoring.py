"""Computes a pair's log-ratio without a cache, and its AUC. For training and tests only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Rows = Sequence[Sequence[int]]


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, end: bool = True) -> list[list[int]]:
    """Token ids of each text as the pair reads it: BOS, the text, and EOS if `end`."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [[bos, *ids, *([eos] if end else [])] for ids in encoded]


def padded(rows: Rows) -> Tensor:
    """(rows, longest) int64, padded with −100 on the right."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *([-100] * (width - len(row)))] for row in rows])


def token_log_probs(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """(rows, longest − 1) nats: the log-probability of every token after the first, 0 at padding.

    No attention mask is needed, because causal attention never reads the padding on the right.
    """
    logits = model(input_ids=tokens.clamp(min=0), use_cache=False).logits[:, :-1]
    return -cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


def log_ratios(tuned: LlamaForCausalLM, untuned: LlamaForCausalLM, rows: Rows, batch: int = 64) -> list[float]:
    """log π_tuned − log π_untuned of each row, nats, in the order of `rows`."""
    return [whole for (whole,) in prefix_log_ratios(tuned, untuned, rows, (), batch)]


@torch.inference_mode()
def prefix_log_ratios(
    tuned: LlamaForCausalLM, untuned: LlamaForCausalLM, rows: Rows, lengths: Sequence[int], batch: int = 64
) -> list[list[float]]:
    """Per row the log-ratios in nats of its first `lengths` tokens (BOS not counted), then of the whole row."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))  # similar lengths together: little padding
    scores: dict[int, list[float]] = {}
    for start in range(0, len(order), batch):
        indices = order[start : start + batch]
        tokens = padded([rows[index] for index in indices])
        running = (token_log_probs(tuned, tokens) - token_log_probs(untuned, tokens)).cumsum(1)
        positions = [min(length, running.shape[1]) - 1 for length in (*lengths, running.shape[1])]
        scores |= zip(indices, running[:, positions].tolist(), strict=True)
    return [scores[index] for index in range(len(rows))]


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """ROC AUC: the probability that a positive scores above a negative; ties count one half."""
    values = torch.tensor(scores, dtype=torch.float64)
    labels = torch.tensor(positive)
    difference = values[labels][:, None] - values[~labels][None, :]
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())
