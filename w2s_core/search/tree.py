"""Records a search: the number of its chunks and, where a trace is asked for, the tree of its candidates."""

from __future__ import annotations

from w2s_core.types import Candidate, Hypothesis, Round


class SearchTree:
    """Records one prompt's rounds. `tree[c]` lists the candidates of chunk c, each with its parent's id."""

    def __init__(self, *, keep_tree: bool) -> None:
        self.chunks = 0
        self.tree: list[list[Candidate]] = []
        self._keep_tree = keep_tree
        self._ids: dict[int, int] = {}  # Python's id() of each hypothesis of the previous round -> candidate id
        self._previous: list[Hypothesis] = []  # keeps those objects alive, so that no other gets their id()

    def add(self, round_: Round) -> None:
        """Appends one round."""
        self.chunks += 1
        if not self._keep_tree:
            return
        kept = {id(y) for y in round_.beam}
        self.tree.append(
            [
                Candidate(
                    id=number,
                    parent=self._ids.get(id(y.parent)),
                    text=y.text,
                    score=y.score,
                    scores=y.scores,
                    finish_reason=y.finish_reason,
                    kept=id(y) in kept,
                )
                for number, y in enumerate(round_.candidates)
            ]
        )
        self._previous = list(round_.candidates)
        self._ids = {id(y): number for number, y in enumerate(round_.candidates)}
