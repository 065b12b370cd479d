"""Where rows are in their grammars, and which tokens may come next: computed beside the model's forward."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

from w2s_core.structured.grammar_compiling import new_matcher
from w2s_core.worker.token_tree import Node
from w2s_core.worker.transfer import moved, send

_BEGINNINGS = 32  # grammars that are kept ready
_THREADS = 8
_BITS = 32  # tokens in a word of a mask
Mask = npt.NDArray[np.int32]


class EndTokens:
    """The tokens that end an answer, as places and bits of a mask."""

    def __init__(self, tokens: Sequence[int]) -> None:
        places = np.array(tokens, np.int64)
        self.words = places // _BITS
        self.bits = np.left_shift(1, places % _BITS).astype(np.uint32).view(np.int32)


class GrammarState:
    """One answer's place in its grammar.

    `mask` tells what may come next, once that is computed, and `problem` what went wrong with the grammar.
    """

    __slots__ = ("_ends", "grammar", "mask", "matcher", "problem")

    def __init__(self, grammar: str, matcher: LLMatcher, ends: EndTokens) -> None:
        self.grammar = grammar
        self.matcher = matcher
        self.mask: Mask | None = None
        self.problem: str | None = None
        self._ends = ends

    def append(self, token: int) -> None:
        """The answer's next token; not one that ends it."""
        self.matcher.consume_token(token)

    def take(self, mask: Mask) -> None:
        """What the library computed; of what ends an answer it knows EOS only."""
        if self.matcher.is_accepting():
            np.bitwise_or.at(mask, self._ends.words, self._ends.bits)
        if self.matcher.is_error() or not mask.any():
            self.problem = self.matcher.get_error() or "no token can come next"
        self.mask = mask


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


def places(leaves: Sequence[Node], grammar: str, beginning: LLMatcher, ends: EndTokens) -> list[GrammarState]:
    """A place for each of these answers, at the cost of the tokens behind the nearest place that is remembered.

    What was remembered on the way is forgotten: the answers have gone on from there.
    """
    rows: list[GrammarState] = []
    passed: list[Node] = []
    for leaf in leaves:
        node, tokens = leaf, list[int]()
        while node.parent is not None and (node.place is None or node.place.grammar != grammar):
            tokens.append(node.token)
            node = node.parent
        known = beginning if node.parent is None or node.place is None else node.place.matcher
        matcher = known.deep_copy()
        matcher.consume_tokens(tokens[::-1])
        rows.append(GrammarState(grammar, matcher, ends))
        passed.append(node)
    for node in passed:
        node.place = None
    return rows


def apply_grammar_masks(changed: torch.Tensor, logits: torch.Tensor, rows: Sequence[GrammarState | None]) -> None:
    """Forbids in `changed` (rows, vocab) what no grammar allows. A row that other masks leave nothing then takes what
    its grammar allows of `logits`."""
    masked = [(i, row.mask) for i, row in enumerate(rows) if row is not None and row.mask is not None]
    if not masked:
        return
    index = send([i for i, _ in masked], logits.device)
    words = moved(torch.from_numpy(np.stack([mask for _, mask in masked])), logits.device)
    bits = (words[:, :, None] >> torch.arange(_BITS, dtype=torch.int32, device=logits.device)) & 1
    forbidden = ~bits.bool().flatten(1)[:, : logits.shape[1]]
    mine = changed[index].masked_fill_(forbidden, float("-inf"))
    nothing = mine.amax(1, keepdim=True) == float("-inf")
    changed[index] = mine.where(~nothing, logits[index].masked_fill_(forbidden, float("-inf")))
