"""What changes logits before a draw: penalties, biases, masks. WorkerCommand as in vLLM: bias, repetition, presence and
frequency, min_p; masks win over all, and a grammar over other masks.

Counts are of the whole answer so far, whichever job drew it, and grow by one token a step.
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
_LARGEST = 1e30  # a tiny repetition penalty or a wide bias must not make infinities: their difference is no number
_BIAS, _SCALE, _MINUS = range(3)
_PLAIN = np.array([[0.0], [1.0], [0.0]], np.float32)  # a token that nothing changes


class LogitsRules:
    """What a job's rows have in common. `eos` are the ids that end a text by themselves."""

    def __init__(self, sampling: Sampling, prompt: Tokens, eos: Collection[int]) -> None:
        self.sampling = sampling
        self.ends = sorted({*eos, *sampling.stop_token_ids})
        self.end_bits = EndTokens(self.ends)
        self.counts = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self.repeats = sampling.repetition_penalty != 1
        #: Of each sequence that must not be completed: its tokens but the last, and the last.
        self.sequences = [(word[:-1], word[-1]) for word in sampling.bad_words if len(word) > 1]
        self.memory = max((len(head) for head, _ in self.sequences), default=0)
        self._forbidden: torch.Tensor | None = None
        biases: dict[int, float] = dict(sampling.logit_bias)
        biases.update((word[0], _FORBIDDEN) for word in sampling.bad_words if len(word) == 1)
        seen = set(prompt) if self.repeats else set()
        self.ids = np.array(sorted(seen | biases.keys()), np.int64)
        self.table = np.repeat(_PLAIN, len(self.ids), axis=1)
        self.table[_BIAS] = [biases.get(token, 0.0) for token in self.ids.tolist()]
        if self.repeats:
            self.table[_SCALE] = [sampling.repetition_penalty if token in seen else 1.0 for token in self.ids.tolist()]
        self.places = {token: place for place, token in enumerate(self.ids.tolist())}

    def minus(self, count: int) -> float:
        """Logits taken from a token that the answer has `count` times, at least once."""
        return self.sampling.presence_penalty + self.sampling.frequency_penalty * count

    def forbidden(self, like: torch.Tensor) -> torch.Tensor | None:
        """(vocab,) true where a token is not among the allowed ones; None where all are."""
        if self._forbidden is None and self.sampling.allowed_token_ids is not None:
            forbidden = torch.ones(like.shape[1], dtype=torch.bool)
            forbidden[list(self.sampling.allowed_token_ids)] = False
            self._forbidden = forbidden.to(like.device)
        return self._forbidden


class LogitsProcessor:
    """One row's: the tokens whose logits change, and by how much. Its task appends the tokens that are drawn."""

    __slots__ = ("_counts", "_ids", "_places", "_table", "_tail", "grammar", "job", "length", "size")

    def __init__(self, job: LogitsRules, answer: Tokens) -> None:
        self.job = job
        self.grammar: GrammarState | None = None  # its task sets it, when the grammar is there
        self.length = 0  # of the answer, in tokens
        self.size = len(job.ids)
        self._ids = job.ids.copy()
        self._table = job.table.copy()
        self._places = dict(job.places)
        self._counts: dict[int, int] = {}
        self._tail: Tokens = ()
        for token in answer:
            self.append(token)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """Distinct token ids, (size,)."""
        return self._ids[: self.size]

    @property
    def table(self) -> npt.NDArray[np.float32]:
        """(3, size): added to the logit, divides or multiplies it, taken from it."""
        return self._table[:, : self.size]

    def append(self, token: int) -> None:
        """The answer's next token."""
        job = self.job
        self.length += 1
        if self.grammar is not None:
            self.grammar.append(token)
        if job.memory:
            self._tail = (*self._tail, token)[-job.memory :]
        if not (job.counts or job.repeats):
            return
        place = self._places.get(token)
        if place is None:
            place = self._add(token)
        count = self._counts[token] = self._counts.get(token, 0) + 1
        self._table[_SCALE, place] = job.sampling.repetition_penalty
        self._table[_MINUS, place] = job.minus(count)

    def _add(self, token: int) -> int:
        if self.size == len(self._ids):
            more = self.size + 16
            self._ids = np.concatenate([self._ids, np.empty(more, np.int64)])
            self._table = np.concatenate([self._table, np.repeat(_PLAIN, more, axis=1)], axis=1)
        place = self._places[token] = self.size
        self._ids[place] = token
        self.size += 1
        return place

    def banned(self) -> list[int]:
        """Tokens that may not come next, beside those that may never come."""
        banned = list(self.job.ends) if self.length < self.job.sampling.min_tokens else []
        for head, last in self.job.sequences:
            if self._tail[-len(head) :] == head:
                banned.append(last)
        return banned


def process_logits(logits: torch.Tensor, rows: Sequence[LogitsProcessor]) -> torch.Tensor:
    """A copy of `logits` (rows, vocab), changed as each row asks."""
    changed = logits.clone()
    sizes = [row.size for row in rows]
    if any(sizes):
        row_of = np.repeat(np.arange(len(rows)), sizes)
        index = _on(logits, row_of), _on(logits, np.concatenate([row.ids for row in rows]))
        bias, scale, minus = _on(logits, np.concatenate([row.table for row in rows], axis=1))
        values = changed[index] + bias
        values = torch.where(values > 0, values / scale, values * scale) - minus
        changed[index] = values.clamp(max=_LARGEST)
    bans = [(i, token) for i, row in enumerate(rows) for token in row.banned()]
    if bans:
        changed[tuple(_on(logits, np.array(bans).T))] = _FORBIDDEN
    for job in dict.fromkeys(row.job for row in rows):
        forbidden = job.forbidden(logits)
        if forbidden is not None:
            mine = _on(logits, np.array([row.job is job for row in rows]))
            changed.masked_fill_(mine[:, None] & forbidden, _FORBIDDEN)
    apply_grammar_masks(changed, logits, [row.grammar for row in rows])
    return _without_unlikely(changed, rows)


def _without_unlikely(logits: torch.Tensor, rows: Sequence[LogitsProcessor]) -> torch.Tensor:
    """min_p: p / p_best ≥ min_p after temperature T is logit ≥ best + T · log(min_p) before it."""
    floors = [_floor(row.job.sampling) for row in rows]
    if max(floors) == min(floors) == _FORBIDDEN:
        return logits
    lowest = logits.amax(1, keepdim=True) + to_device(torch.tensor(floors), logits.device)[:, None]
    return logits.masked_fill(logits < lowest, _FORBIDDEN)


def _floor(sampling: Sampling) -> float:
    return sampling.temperature * math.log(sampling.min_p) if sampling.min_p > 0 else _FORBIDDEN


def _on(like: torch.Tensor, values: npt.NDArray[np.generic]) -> torch.Tensor:
    return to_device(torch.from_numpy(values), like.device)
