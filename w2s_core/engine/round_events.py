"""Rounds of a search as events, for requests that have their search tree streamed (`Guidance.trace` "stream")."""

from __future__ import annotations

from w2s_core.engine.events import RoundFinished
from w2s_core.engine.observer import RequestObserver
from w2s_core.engine.planning import Plan
from w2s_core.interfaces import Proposals, Scoring
from w2s_core.search.tree import RoundTrace
from w2s_core.types import Round


class RoundEvents:
    """Makes one event of each round of a plan's search, which answers the choices from index `first_choice` on."""

    def __init__(self, plan: Plan, first_choice: int, observer: RequestObserver) -> None:
        self._choices = range(first_choice, first_choice + plan.n)
        self._prompt = first_choice // plan.n
        self._observer = observer
        self._trace = RoundTrace(max_characters=plan.tree_characters)
        self._chunk = 0

    def event(self, round_: Round, committed: int, proposals: Proposals, scoring: Scoring) -> RoundFinished | None:
        """The event for the next round; None if one has said already that the rounds are too large."""
        if self._trace.truncated:
            return None
        candidates = self._trace.candidates(round_)
        self._chunk += 1
        return RoundFinished(
            prompt=self._prompt,
            choices=self._choices,
            chunk=self._chunk,
            candidates=candidates,
            committed=committed,
            sampled_tokens=proposals.sampled_tokens,
            scored_tokens=scoring.scored_tokens,
            seconds=self._observer.elapsed(),
            truncated=self._trace.truncated,
        )
