"""Records a search: the number of its chunks and, where a trace is asked for, the tree of its candidates."""

from __future__ import annotations

from w2s_core.types import Candidate, Round

#: The trees of a request end before the chunk with which they would exceed this, because every candidate's text is the
#: whole answer so far: a tree of all chunks would grow with the square of the answer's length.
MAX_TREE_CHARACTERS = 2_000_000
_NODE_CHARACTERS = 200  # of a candidate in JSON besides its text, about


class SearchTree:
    """Records one prompt's rounds. `tree[c]` lists the candidates of chunk c, each with its parent's id.

    The tree has room for `max_characters`; `truncated` says that later chunks are missing.
    """

    def __init__(self, *, max_characters: int) -> None:
        self.chunks = 0
        self.tree: list[list[Candidate]] = []
        self.truncated = False
        self._room = max_characters
        self._ids: dict[int, int] = {}  # the key of each hypothesis of the previous round -> candidate id

    def add(self, round_: Round) -> None:
        """Appends one round."""
        self.chunks += 1
        if self.truncated:
            return
        self._room -= sum(len(y.text) + _NODE_CHARACTERS for y in round_.candidates)
        if self._room < 0:
            self.truncated = True
            return
        kept = {y.key for y in round_.beam}
        self.tree.append(
            [
                Candidate(
                    id=number,
                    parent=None if y.parent is None else self._ids.get(y.parent.key),
                    text=y.text,
                    score=y.score,
                    rank=y.rank,
                    scores=y.scores,
                    finish_reason=y.finish_reason,
                    kept=y.key in kept,
                )
                for number, y in enumerate(round_.candidates)
            ]
        )
        self._ids = {y.key: number for number, y in enumerate(round_.candidates)}
