"""A PromptJob while it runs: the prompt's tokens in slices, and the logits behind each of them."""

from __future__ import annotations

import torch

from w2s_core.pool.messages import PromptJob, PromptResult
from w2s_core.types import Alternatives, PromptLogprobs
from w2s_core.worker.token_tree import Node, TokenTree
from w2s_core.worker.top_logprobs import logprobs_and_ranks, top_logprobs


class PromptTask:
    """Its tree is its own and begins with nothing: KV from elsewhere would spare the runs whose logits it is about.

    What is known stays known when the tree loses its KV; the tokens then run again without their logits.
    """

    def __init__(self, job: PromptJob, tree: TokenTree) -> None:
        self.job = job
        self.tree = tree
        self.leaves: list[Node] = []  # no answer stands behind this prompt
        self._logprobs: list[float] = []
        self._ranks: list[int] = []
        self._alternatives: list[Alternatives] = []

    @property
    def known(self) -> int:
        """Of the first so many of the prompt's tokens one knows what comes behind them."""
        return len(self._logprobs)

    @property
    def done(self) -> bool:
        return self.known == len(self.job.prompt) - 1

    def read(self, logits: torch.Tensor) -> None:
        """`logits` (n, vocab) in float32, behind the next n tokens."""
        followers = self.job.prompt[self.known + 1 : self.known + 1 + len(logits)]
        logprobs, ranks = logprobs_and_ranks(logits, followers)
        self._logprobs += logprobs
        self._ranks += ranks
        self._alternatives += top_logprobs(logits, self.job.top)

    def result(self) -> PromptResult:
        found = PromptLogprobs(tuple(self._logprobs), tuple(self._ranks), tuple(self._alternatives))
        return PromptResult(self.job.id, found)
