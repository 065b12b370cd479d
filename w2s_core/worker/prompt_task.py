"""Prompt task: a running PromptJob, which computes the log-probabilities of a prompt's own tokens slice by slice."""

from __future__ import annotations

import torch

from w2s_core.pool.messages import PromptJob, PromptResult
from w2s_core.types import Alternatives, PromptLogprobs
from w2s_core.worker.token_tree import Node, TokenTree
from w2s_core.worker.top_logprobs import logprobs_and_ranks, top_logprobs


class PromptTask:
    """Collects the prompt's log-probabilities from the logits after each of its tokens.

    Its session starts without KV from the prefix cache, because it needs the logits of every prompt token. When its
    tree is preempted it keeps the results so far; those tokens run again without logits.
    """

    def __init__(self, job: PromptJob, tree: TokenTree) -> None:
        self.job = job
        self.tree = tree
        self.leaves: list[Node] = []  # the session has no answers
        self._logprobs: list[float] = []
        self._ranks: list[int] = []
        self._alternatives: list[Alternatives] = []

    @property
    def processed(self) -> int:
        """The number of leading prompt tokens whose logits have been used."""
        return len(self._logprobs)

    @property
    def done(self) -> bool:
        return self.processed == len(self.job.prompt) - 1

    def add_logits(self, logits: torch.Tensor) -> list[float]:
        """Uses the `logits` (n, vocab, float32) after the next n prompt tokens. Returns their log-probabilities."""
        following = self.job.prompt[self.processed + 1 : self.processed + 1 + len(logits)]
        logprobs, ranks = logprobs_and_ranks(logits, following)
        self._logprobs += logprobs
        self._ranks += ranks
        self._alternatives += top_logprobs(logits, self.job.top)
        return logprobs

    def result(self) -> PromptResult:
        logprobs = PromptLogprobs(tuple(self._logprobs), tuple(self._ranks), tuple(self._alternatives))
        return PromptResult(self.job.id, logprobs)
