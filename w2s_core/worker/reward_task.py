"""Reward task: a running RewardJob, which needs a reward model's output after the last token of each answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from w2s_core.pool.messages import RewardJob, RewardResult
from w2s_core.worker.token_tree import Node, TokenTree


class RewardTask:
    """Collects the rewards of answers. A reward stays on the answer's last node, so it is computed once.

    An empty answer has the reward of the prompt alone.
    """

    def __init__(self, job: RewardJob, tree: TokenTree) -> None:
        self.job = job
        self.tree = tree
        self.tokens_run = 0
        self.leaves = [tree.insert(answer) for answer in job.answers]

    @property
    def done(self) -> bool:
        return all(leaf.reward is not None for leaf in self.leaves)

    def needed_nodes(self) -> Iterator[Node]:
        """The nodes after which the task needs the model's output: the leaves whose reward is unknown."""
        return iter(dict.fromkeys(leaf for leaf in self.leaves if leaf.reward is None))

    def found(self, logits_rows: Mapping[Node, int]) -> list[tuple[Node, int]]:
        """The leaves without a reward whose output is in this batch, each with its row."""
        return [(node, logits_rows[node]) for node in self.needed_nodes() if node in logits_rows]

    def result(self) -> RewardResult:
        return RewardResult(self.job.id, tuple(leaf.reward or 0.0 for leaf in self.leaves), self.tokens_run)
