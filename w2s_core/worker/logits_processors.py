"""Logits processors: penalties, logit bias, banned and allowed tokens, min_p and grammar masks, applied before a draw.

They are applied in vLLM's order: bias, repetition penalty, presence and frequency penalties, min_p. Masks win over all
of them, and a grammar's mask wins over the other masks. Penalties count the whole answer so far, whichever job drew it,
and are updated by one token per step.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import torch

from w2s_core.pool.messages import Sampling
from w2s_core.types import Tokens
from w2s_core.worker.grammar_masks import apply_grammar_masks
from w2s_core.worker.grammar_states import EndTokens, GrammarState
from w2s_core.worker.transfer import to_device

_FORBIDDEN = float("-inf")
_LARGEST = 1e30  # caps tiny repetition penalties and wide biases: the difference of two infinities is not a number
_BIAS, _SCALE, _PENALTY = range(3)
_NEUTRAL = np.array([[0.0], [1.0], [0.0]], np.float32)  # the column of a token that nothing changes


class LogitsRules:
    """The rules that all rows of a job share. `eos` are the model's own ids that end a text.

    The rules for single tokens are columns of a table (3, tokens): logit bias, repetition penalty, and the sum of
    presence and frequency penalties.
    """

    def __init__(self, sampling: Sampling, prompt: Tokens, eos: Collection[int]) -> None:
        self.sampling = sampling
        self.end_tokens = sorted({*eos, *sampling.stop_token_ids})
        self.end_token_bits = EndTokens(self.end_tokens)
        self.counts_tokens = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self.penalizes_repetition = sampling.repetition_penalty != 1
        #: (leading tokens, last token) of each banned sequence of several tokens
        self.banned_sequences = [(word[:-1], word[-1]) for word in sampling.bad_words if len(word) > 1]
        self.tail_length = max((len(head) for head, _ in self.banned_sequences), default=0)
        self._forbidden_mask: torch.Tensor | None = None
        biases: dict[int, float] = dict(sampling.logit_bias)
        biases.update((word[0], _FORBIDDEN) for word in sampling.bad_words if len(word) == 1)
        in_prompt = set(prompt) if self.penalizes_repetition else set()
        self.token_ids = np.array(sorted(in_prompt | biases.keys()), np.int64)
        ids = self.token_ids.tolist()
        self.table = np.repeat(_NEUTRAL, len(ids), axis=1)
        self.table[_BIAS] = [biases.get(token, 0.0) for token in ids]
        if self.penalizes_repetition:
            self.table[_SCALE] = [sampling.repetition_penalty if token in in_prompt else 1.0 for token in ids]
        self.columns = {token: column for column, token in enumerate(ids)}

    def penalty(self, count: int) -> float:
        """What is subtracted from the logit of a token that the answer contains `count` times, at least once."""
        return self.sampling.presence_penalty + self.sampling.frequency_penalty * count

    def forbidden_mask(self, like: torch.Tensor) -> torch.Tensor | None:
        """(vocab,), True for tokens outside `allowed_token_ids`; None if all are allowed."""
        if self._forbidden_mask is None and self.sampling.allowed_token_ids is not None:
            forbidden = torch.ones(like.shape[1], dtype=torch.bool)
            forbidden[list(self.sampling.allowed_token_ids)] = False
            self._forbidden_mask = forbidden.to(like.device)
        return self._forbidden_mask


class LogitsProcessor:
    """One row's logits processor: the tokens whose logits change, and by how much. Its task appends drawn tokens."""

    __slots__ = ("_columns", "_counts", "_ids", "_table", "_tail", "answer_length", "grammar", "rules", "size")

    def __init__(self, rules: LogitsRules, answer: Tokens) -> None:
        self.rules = rules
        self.grammar: GrammarState | None = None  # set by its task once the grammar is compiled
        self.answer_length = 0  # tokens
        self.size = len(rules.token_ids)  # columns in use; the arrays are larger
        self._ids = rules.token_ids.copy()
        self._table = rules.table.copy()
        self._columns = dict(rules.columns)
        self._counts: dict[int, int] = {}
        self._tail: Tokens = ()
        for token in answer:
            self.append(token)

    @property
    def token_ids(self) -> npt.NDArray[np.int64]:
        """The distinct tokens whose logits change, (size,)."""
        return self._ids[: self.size]

    @property
    def table(self) -> npt.NDArray[np.float32]:
        """(3, size): added to the logit; divides a positive logit or multiplies a negative one; subtracted from it."""
        return self._table[:, : self.size]

    def append(self, token: int) -> None:
        """Updates penalties, banned sequences and the grammar state for the answer's next token."""
        rules = self.rules
        self.answer_length += 1
        if self.grammar is not None:
            self.grammar.append(token)
        if rules.tail_length:
            self._tail = (*self._tail, token)[-rules.tail_length :]
        if not (rules.counts_tokens or rules.penalizes_repetition):
            return
        column = self._columns.get(token)
        if column is None:
            column = self._add_column(token)
        count = self._counts[token] = self._counts.get(token, 0) + 1
        self._table[_SCALE, column] = rules.sampling.repetition_penalty
        self._table[_PENALTY, column] = rules.penalty(count)

    def _add_column(self, token: int) -> int:
        if self.size == len(self._ids):
            more = self.size + 16
            self._ids = np.concatenate([self._ids, np.empty(more, np.int64)])
            self._table = np.concatenate([self._table, np.repeat(_NEUTRAL, more, axis=1)], axis=1)
        column = self._columns[token] = self.size
        self._ids[column] = token
        self.size += 1
        return column

    def banned_tokens(self) -> list[int]:
        """Tokens banned for the next draw only: end tokens before `min_tokens`, and the last of a banned sequence."""
        banned = list(self.rules.end_tokens) if self.answer_length < self.rules.sampling.min_tokens else []
        for head, last in self.rules.banned_sequences:
            if self._tail[-len(head) :] == head:
                banned.append(last)
        return banned


def process_logits(logits: torch.Tensor, processors: Sequence[LogitsProcessor]) -> torch.Tensor:
    """A copy of `logits` (rows, vocab), each row changed by its processor."""
    changed = logits.clone()
    sizes = [row.size for row in processors]
    if any(sizes):
        row_of = np.repeat(np.arange(len(processors)), sizes)
        ids = np.concatenate([row.token_ids for row in processors])
        index = _tensor(row_of, logits), _tensor(ids, logits)
        bias, scale, penalty = _tensor(np.concatenate([row.table for row in processors], axis=1), logits)
        values = changed[index] + bias
        values = torch.where(values > 0, values / scale, values * scale) - penalty
        changed[index] = values.clamp(max=_LARGEST)
    banned = [(i, token) for i, row in enumerate(processors) for token in row.banned_tokens()]
    if banned:
        changed[tuple(_tensor(np.array(banned).T, logits))] = _FORBIDDEN
    for rules in dict.fromkeys(row.rules for row in processors):
        forbidden = rules.forbidden_mask(logits)
        if forbidden is not None:
            rows = _tensor(np.array([row.rules is rules for row in processors]), logits)
            changed.masked_fill_(rows[:, None] & forbidden, _FORBIDDEN)
    apply_grammar_masks(changed, logits, [row.grammar for row in processors])
    return _apply_min_p(changed, processors)


def _apply_min_p(logits: torch.Tensor, processors: Sequence[LogitsProcessor]) -> torch.Tensor:
    """min_p: p / p_best ≥ min_p after temperature T is logit ≥ best + T · log(min_p) before it."""
    margins = [_min_p_margin(row.rules.sampling) for row in processors]
    if max(margins) == min(margins) == _FORBIDDEN:
        return logits
    lowest = logits.amax(1, keepdim=True) + to_device(torch.tensor(margins), logits.device)[:, None]
    return logits.masked_fill(logits < lowest, _FORBIDDEN)


def _min_p_margin(sampling: Sampling) -> float:
    """T · log(min_p), ≤ 0; −inf without min_p."""
    return sampling.temperature * math.log(sampling.min_p) if sampling.min_p > 0 else _FORBIDDEN


def _tensor(values: npt.NDArray[np.generic], like: torch.Tensor) -> torch.Tensor:
    return to_device(torch.from_numpy(values), like.device)
