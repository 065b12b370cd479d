"""Grammar masks: compiles grammars with llguidance and computes which tokens each row may draw next.

Masks are computed in threads of their own, while the model runs its forward pass.
"""

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

_MAX_COMPILED = 32  # compiled grammars that are kept, the most recently used ones
_MAX_THREADS = 8


class GrammarEngine:
    """One model's compiled grammars and mask computation.

    `load_tokenizer` gives the model's tokenizer; it is called when the first grammar needs it.
    """

    def __init__(self, load_tokenizer: Callable[[], LLTokenizer]) -> None:
        self._load_tokenizer = load_tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._executor: LLExecutor | None = None
        self._matchers: OrderedDict[str, Future[LLMatcher]] = OrderedDict()  # least recently used first
        # Compiling may take long and must not delay masks, so compiling and masking each have their own thread.
        self._compiling = ThreadPoolExecutor(1, "w2s-grammar")
        self._masking = ThreadPoolExecutor(1, "w2s-masks")

    def initial_matcher(self, grammar: str) -> Future[LLMatcher]:
        """The compiled grammar before an answer's first token. Callers copy it and never advance it."""
        matcher = self._matchers.pop(grammar, None) or self._compiling.submit(self._compile, grammar)
        self._matchers[grammar] = matcher
        if len(self._matchers) > _MAX_COMPILED:
            self._matchers.popitem(last=False)
        return matcher

    def compute_masks(self, states: Sequence[GrammarState]) -> Future[None]:
        """Starts to compute the masks of these states."""
        return self._masking.submit(self._fill_masks, states)

    def _compile(self, grammar: str) -> LLMatcher:
        return new_matcher(self._loaded_tokenizer(), grammar)

    def _loaded_tokenizer(self) -> LLTokenizer:
        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer()
        return self._tokenizer

    def _fill_masks(self, states: Sequence[GrammarState]) -> None:
        if self._executor is None:
            self._executor = LLExecutor(min(_MAX_THREADS, os.cpu_count() or 1))
        masks = allocate_token_bitmask(len(states), self._loaded_tokenizer().vocab_size)
        fill_next_token_bitmask_par(self._executor, [(state.matcher, i) for i, state in enumerate(states)], masks)
        for state, mask in zip(states, masks, strict=True):
            state.set_mask(mask)


def resume_states(
    leaves: Sequence[Node], grammar: str, initial: LLMatcher, end_tokens: EndTokens
) -> list[GrammarState]:
    """The grammar state of each answer, resumed from the nearest ancestor node that has one, else from `initial`.

    Only the tokens after that node are consumed. The states resumed from are dropped, because the answers have
    continued past them.
    """
    states: list[GrammarState] = []
    resumed_from: list[Node] = []
    for leaf in leaves:
        node, tokens = leaf, list[int]()
        while node.parent is not None and (node.grammar_state is None or node.grammar_state.grammar != grammar):
            tokens.append(node.token)
            node = node.parent
        source = initial if node.parent is None or node.grammar_state is None else node.grammar_state.matcher
        matcher = source.deep_copy()
        matcher.consume_tokens(tokens[::-1])
        states.append(GrammarState(grammar, matcher, end_tokens))
        resumed_from.append(node)
    for node in resumed_from:
        node.grammar_state = None
    return states


def apply_grammar_masks(changed: torch.Tensor, logits: torch.Tensor, states: Sequence[GrammarState | None]) -> None:
    """Sets tokens that a row's grammar forbids to −inf in `changed` (rows, vocab), in place.

    Where other masks leave a row no token that its grammar allows, they are lifted: the row then gets what its grammar
    allows of the unchanged `logits`.
    """
    masked = [(i, state.mask) for i, state in enumerate(states) if state is not None and state.mask is not None]
    if not masked:
        return
    index = long_tensor([i for i, _ in masked], logits.device)
    words = to_device(torch.from_numpy(np.stack([mask for _, mask in masked])), logits.device)
    bits = (words[:, :, None] >> torch.arange(BITS, dtype=torch.int32, device=logits.device)) & 1
    forbidden = ~bits.bool().flatten(1)[:, : logits.shape[1]]
    rows = changed[index].masked_fill_(forbidden, float("-inf"))
    empty = rows.amax(1, keepdim=True) == float("-inf")
    changed[index] = rows.where(~empty, logits[index].masked_fill_(forbidden, float("-inf")))
