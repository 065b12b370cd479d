"""Where rows are in their grammars, and which tokens may come next: computed beside the model's forward."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

from w2s_core.structured.grammar_compiling import new_matcher
from w2s_core.worker.grammar_states import BITS, EndTokens, GrammarState
from w2s_core.worker.token_tree import Node
from w2s_core.worker.transfer import long_tensor, to_device

_BEGINNINGS = 32  # grammars that are kept ready
_THREADS = 8


class GrammarEngine:
    """One model's. `load` gives its tokenizer, when the first grammar needs it."""

    def __init__(self, load: Callable[[], LLTokenizer]) -> None:
        self._load = load
        self._tokenizer: LLTokenizer | None = None
        self._executor: LLExecutor | None = None
        self._beginnings: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
        self._compiling = ThreadPoolExecutor(1, "w2s-grammar")  # which may take long, and must not delay masks
        self._masking = ThreadPoolExecutor(1, "w2s-masks")

    def beginning(self, grammar: str) -> Future[LLMatcher]:
        """Where every answer begins; to be copied, never moved."""
        found = self._beginnings.pop(grammar, None) or self._compiling.submit(self._compile, grammar)
        self._beginnings[grammar] = found
        if len(self._beginnings) > _BEGINNINGS:
            self._beginnings.popitem(last=False)
        return found

    def masks(self, rows: Sequence[GrammarState]) -> Future[None]:
        """Begins to compute all these rows' masks."""
        return self._masking.submit(self._fill, rows)

    def _compile(self, grammar: str) -> LLMatcher:
        return new_matcher(self._loaded(), grammar)

    def _loaded(self) -> LLTokenizer:
        if self._tokenizer is None:
            self._tokenizer = self._load()
        return self._tokenizer

    def _fill(self, rows: Sequence[GrammarState]) -> None:
        if self._executor is None:
            self._executor = LLExecutor(min(_THREADS, os.cpu_count() or 1))
        masks = allocate_token_bitmask(len(rows), self._loaded().vocab_size)
        fill_next_token_bitmask_par(self._executor, [(row.matcher, i) for i, row in enumerate(rows)], masks)
        for row, mask in zip(rows, masks, strict=True):
            row.take(mask)


def resume_states(leaves: Sequence[Node], grammar: str, beginning: LLMatcher, ends: EndTokens) -> list[GrammarState]:
    """A place for each of these answers, at the cost of the tokens behind the nearest place that is remembered.

    What was remembered on the way is forgotten: the answers have gone on from there.
    """
    rows: list[GrammarState] = []
    passed: list[Node] = []
    for leaf in leaves:
        node, tokens = leaf, list[int]()
        while node.parent is not None and (node.grammar_state is None or node.grammar_state.grammar != grammar):
            tokens.append(node.token)
            node = node.parent
        known = beginning if node.parent is None or node.grammar_state is None else node.grammar_state.matcher
        matcher = known.deep_copy()
        matcher.consume_tokens(tokens[::-1])
        rows.append(GrammarState(grammar, matcher, ends))
        passed.append(node)
    for node in passed:
        node.grammar_state = None
    return rows


def apply_grammar_masks(changed: torch.Tensor, logits: torch.Tensor, rows: Sequence[GrammarState | None]) -> None:
    """Forbids in `changed` (rows, vocab) what no grammar allows. A row that other masks leave nothing then takes what
    its grammar allows of `logits`."""
    masked = [(i, row.mask) for i, row in enumerate(rows) if row is not None and row.mask is not None]
    if not masked:
        return
    index = long_tensor([i for i, _ in masked], logits.device)
    words = to_device(torch.from_numpy(np.stack([mask for _, mask in masked])), logits.device)
    bits = (words[:, :, None] >> torch.arange(BITS, dtype=torch.int32, device=logits.device)) & 1
    forbidden = ~bits.bool().flatten(1)[:, : logits.shape[1]]
    mine = changed[index].masked_fill_(forbidden, float("-inf"))
    nothing = mine.amax(1, keepdim=True) == float("-inf")
    changed[index] = mine.where(~nothing, logits[index].masked_fill_(forbidden, float("-inf")))
