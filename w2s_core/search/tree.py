"""Records a search: the number of its chunks and, where a trace is asked for, the tree of its candidates.

A tree is kept until the search ends (`SearchTree`), or sent round by round while it grows (`RoundTrace`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any, Literal, TypeAlias

from w2s_core.types import Candidate, FinishReason, Hypothesis, Round

#: The trees of a request end before the chunk with which they would exceed this, because every candidate's text is the
#: whole answer so far: a tree of all chunks would grow with the square of the answer's length. Rounds that are sent
#: have the same bound.
MAX_TREE_CHARACTERS = 2_000_000
_NODE_CHARACTERS = 200  # of a candidate in JSON besides its text, about
Fate: TypeAlias = Literal["kept", "pruned", "merged", "finished"]


@dataclass(frozen=True, slots=True)
class RoundCandidate:
    """A candidate of one round, with its text as the difference to its parent's.

    The first `offset` characters of the parent's text, and then `text`, are the candidate's text. `parent` is the `id`
    of a candidate of the previous round; None is the prompt, whose answer is empty. `fate`: it is in the beam and goes
    on ("kept") or has ended ("finished"), was equal to another candidate of the round ("merged"; it has the scores of
    that one), or is in the beam no more ("pruned").
    """

    id: int
    parent: int | None
    offset: int
    text: str
    score: float
    rank: float
    scores: Mapping[str, float]
    finish_reason: FinishReason | None
    fate: Fate


class _Record:
    """Gives the candidates of each round their ids, and has room for `max_characters`.

    `truncated` says that there was no room for a round; none is recorded after it.
    """

    def __init__(self, *, max_characters: int) -> None:
        self.truncated = False
        self._room = max_characters
        self._previous: dict[int, tuple[int, str]] = {}  # id and text of each candidate of the previous round, by key

    def _take_room(self, texts: Iterable[str]) -> bool:
        self._room -= sum(len(text) + _NODE_CHARACTERS for text in texts)
        self.truncated |= self._room < 0
        return not self.truncated

    def _ancestor(self, y: Hypothesis | None) -> tuple[int | None, str]:
        """Id and text of a hypothesis of the previous round; those of the prompt if it is none."""
        return (None, "") if y is None else self._previous.get(y.key, (None, ""))

    def _end_round(self, candidates: Sequence[Hypothesis]) -> None:
        self._previous = {y.key: (number, y.text) for number, y in enumerate(candidates)}


class SearchTree(_Record):
    """Records one prompt's rounds. `tree[c]` lists the candidates of chunk c, each with its parent's id.

    The tree has room for `max_characters`; `truncated` says that later chunks are missing.
    """

    def __init__(self, *, max_characters: int) -> None:
        super().__init__(max_characters=max_characters)
        self.chunks = 0
        self.tree: list[list[Candidate]] = []

    def add(self, round_: Round) -> None:
        """Appends one round."""
        self.chunks += 1
        if self.truncated or not self._take_room(y.text for y in round_.candidates):
            return
        kept = {y.key for y in round_.beam}
        self.tree.append(
            [
                Candidate(parent=self._ancestor(y.parent)[0], text=y.text, kept=y.key in kept, **_described(number, y))
                for number, y in enumerate(round_.candidates)
            ]
        )
        self._end_round(round_.candidates)


class RoundTrace(_Record):
    """Describes one prompt's rounds one by one, each by what it adds to the one before.

    The candidates of a round have the ids that they have in a `SearchTree`. After them come finished ones of earlier
    rounds, as long as they stay in the beam and in the round in which they leave it, and then those that were merged.
    """

    def candidates(self, round_: Round) -> list[RoundCandidate]:
        """The candidates of the next round; none if the rounds so far, with this one, exceed the room."""
        if self.truncated:
            return []
        unique = [*round_.candidates, *round_.carried]
        kept, distinct = {y.key for y in round_.beam}, {y.key for y in unique}
        origins = [*(y.parent for y in round_.candidates), *round_.carried]
        nodes = [
            self._node(number, y, origin, _fate(y) if y.key in kept else "pruned")
            for number, (y, origin) in enumerate(zip(unique, origins, strict=True))
        ]
        scored = {_answer(y): y for y in reversed(unique)}
        for y in round_.proposed:
            if y.key not in distinct:
                nodes.append(self._node(len(nodes), y, y.parent, "merged", scored.get(_answer(y))))
        if not self._take_room(node.text for node in nodes):
            return []
        self._end_round(unique)
        return nodes

    def _node(
        self, number: int, y: Hypothesis, origin: Hypothesis | None, fate: Fate, scored: Hypothesis | None = None
    ) -> RoundCandidate:
        """A node for `y`, whose text continues that of `origin`, with the scores of `scored`; by default its own."""
        parent, text = self._ancestor(origin)
        offset = len(text) if y.text.startswith(text) else len(commonprefix([text, y.text]))  # noqa: RUF071
        described = _described(number, scored or y) | {"finish_reason": y.finish_reason}
        return RoundCandidate(parent=parent, offset=offset, text=y.text[offset:], fate=fate, **described)


def _fate(y: Hypothesis) -> Fate:
    return "finished" if y.finished else "kept"


def _answer(y: Hypothesis) -> tuple[str, bool, FinishReason]:
    """What two candidates that were merged have in common."""
    return y.text, y.ended, y.finish_reason or "length"


def _described(number: int, y: Hypothesis) -> dict[str, Any]:
    """What both kinds of nodes say of a candidate."""
    return {"id": number, "score": y.score, "rank": y.rank, "scores": y.scores, "finish_reason": y.finish_reason}
