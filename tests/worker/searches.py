"""Random searches of several sessions at once, and the logits that a runner gives in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from w2s_core.types import Tokens
from w2s_core.worker.batch import Batch
from w2s_core.worker.model_runner import ModelRunner
from w2s_core.worker.token_tree import Node, TokenTree

_TOKENS = st.integers(0, 3)  # few, so that answers share beginnings
_GROWTH = st.tuples(st.integers(0, 3), st.lists(_TOKENS, min_size=1, max_size=3).map(tuple))


@dataclass(frozen=True)
class Search:
    """`rounds[i][j]` are session j's answers in round i, by the answer that each continues and its new tokens. A step
    has about `budget` tokens."""

    prompts: tuple[Tokens, ...]
    rounds: tuple[tuple[tuple[tuple[int, Tokens], ...], ...], ...]
    budget: int

    def answers(self) -> list[list[list[Tokens]]]:
        """Every session's answers, round by round."""
        beams: list[list[Tokens]] = [[()] for _ in self.prompts]
        found = []
        for growths in self.rounds:
            beams = [
                [beam[parent % len(beam)] + new for parent, new in growth]
                for beam, growth in zip(beams, growths, strict=True)
            ]
            found.append(beams)
        return found


@st.composite
def searches(draw: st.DrawFn) -> Search:
    """One to four sessions, some with prompts of more tokens than a session has in joint attention."""
    sizes = draw(st.lists(st.sampled_from([1, 2, 5, 17, 40]), min_size=1, max_size=4))
    prompts = tuple(tuple((7 * i + 3 * j) % 250 for j in range(size)) for i, size in enumerate(sizes))
    growth = st.lists(_GROWTH, min_size=1, max_size=5).map(tuple)
    rounds = st.lists(st.tuples(*[growth for _ in prompts]), min_size=2, max_size=4).map(tuple)
    return Search(prompts, draw(rounds), draw(st.sampled_from([7, 60])))


def logits_of(runner: ModelRunner, search: Search, before: Callable[[], object] = lambda: None) -> list[torch.Tensor]:
    """The logits after every answer of every round and session. `before` is called before each step."""
    trees = [TokenTree(runner.cache, prompt) for prompt in search.prompts]
    found: list[torch.Tensor] = []
    for beams in search.answers():
        leaves = [[tree.insert(answer) for answer in beam] for tree, beam in zip(trees, beams, strict=True)]
        for tree, ends in zip(trees, leaves, strict=True):
            tree.prune_to(ends)
        wanted = [(tree, end) for tree, ends in zip(trees, leaves, strict=True) for end in ends]
        found += _run(runner, wanted, search.budget, before)
    for tree in trees:
        tree.close()
    return found


def _run(
    runner: ModelRunner, wanted: Sequence[tuple[TokenTree, Node]], budget: int, before: Callable[[], object]
) -> list[torch.Tensor]:
    found: dict[Node, torch.Tensor] = {}
    while any(node not in found for _, node in wanted):
        batch = Batch(budget)
        for tree, node in wanted:
            if node not in found:
                batch.request_logits(tree, node)
        before()
        logits = runner.forward(batch)
        found |= {node: logits[row] for node, row in batch.logits_rows.items()}
    return [found[node] for _, node in wanted]
