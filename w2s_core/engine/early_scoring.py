"""Early scoring: scores the successors that have arrived while a provider still samples the others.

The successors of different hypotheses arrive at different times. A pair that waits for the slowest wastes that time.
Successors that arrive within `_BATCH_WINDOW_S` of each other are scored in one batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Protocol, runtime_checkable

from w2s_core.aio import gather_all
from w2s_core.errors import PairContextLengthError
from w2s_core.interfaces import Proposals, Scoring
from w2s_core.search.cbs import distinct
from w2s_core.types import Hypothesis

# How long scoring waits after an arrival for further ones. Successors that a provider samples in one batch end within a
# step or two of each other, and one call of the pair costs less than several.
_BATCH_WINDOW_S = 0.02


@runtime_checkable
class AsCompletedProposals(Proposals, Protocol):
    """Proposals that can yield each hypothesis' successors as soon as they are sampled (see `asyncio.as_completed`)."""

    def propose_as_completed(
        self, beam: Sequence[Hypothesis], *, k: int, length: int
    ) -> AsyncGenerator[tuple[int, list[Hypothesis]]]:
        """Like `propose`, but yields (index of the parent in `beam`, its successors) in order of completion."""
        ...


class EarlyScoringProposer:
    """A `Proposer` that has successors scored while others are still being sampled.

    The scores stay in the scoring session: when `search` asks for all of them, it finds most of them done.
    """

    def __init__(self, proposals: AsCompletedProposals, scoring: Scoring) -> None:
        self._proposals = proposals
        self._scoring = scoring

    async def propose(self, beam: Sequence[Hypothesis], *, k: int, length: int) -> list[Hypothesis]:
        """The same as `Proposals.propose`. The last arrivals are left for `search` to score."""
        arrived: dict[int, list[Hypothesis]] = {}
        has_arrivals, complete = asyncio.Event(), asyncio.Event()

        async def sample() -> None:
            successors_by_parent = self._proposals.propose_as_completed(beam, k=k, length=length)
            async with aclosing(successors_by_parent):
                async for parent, successors in successors_by_parent:
                    arrived[parent] = successors
                    has_arrivals.set()
            complete.set()
            has_arrivals.set()

        async def score() -> None:
            while True:
                await has_arrivals.wait()
                with suppress(TimeoutError):
                    await asyncio.wait_for(complete.wait(), _BATCH_WINDOW_S)
                has_arrivals.clear()
                if complete.is_set():
                    return
                # The beam is included because a scoring session frees every hypothesis that a call does not name.
                early = distinct([*beam, *(y for siblings in arrived.values() for y in siblings)])
                with suppress(PairContextLengthError):  # `search` will meet it, too
                    await self._scoring.prefetch(early)

        await gather_all([sample(), score()])
        return [y for parent in range(len(beam)) for y in arrived[parent]]
