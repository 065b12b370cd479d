"""Scores successors early, while slower beams are still drawn: beams of a provider end at different times, and a pair
that waits for the last of them wastes that time. Beams that end together are scored together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Protocol, runtime_checkable

from w2s_core.aio import gather_all
from w2s_core.interfaces import Proposals, Scoring
from w2s_core.search.cbs import distinct
from w2s_core.types import Hypothesis

# How long the first arrivals wait for company: beams that a provider draws in one batch end within its step or two,
# and several calls of the pair cost more than one.
_COMPANY_S = 0.02


@runtime_checkable
class AsCompletedProposals(Proposals, Protocol):
    """Proposals whose beams end at different times."""

    def propose_as_completed(
        self, beam: Sequence[Hypothesis], *, k: int, length: int
    ) -> AsyncGenerator[tuple[int, list[Hypothesis]]]:
        """As `propose`, but a parent's successors come with its index in `beam`, whoever is first."""
        ...


class EarlyScoringProposer:
    """What `search` takes for `proposals` to that effect: when it asks for all scores, most of them are known."""

    def __init__(self, proposals: AsCompletedProposals, scoring: Scoring) -> None:
        self._proposals = proposals
        self._scoring = scoring

    async def propose(self, beam: Sequence[Hypothesis], *, k: int, length: int) -> list[Hypothesis]:
        """As `Proposals.propose`. What has come by then is scored in one call, the last arrivals by `search`."""
        arrived: dict[int, list[Hypothesis]] = {}
        news, complete = asyncio.Event(), asyncio.Event()

        async def draw() -> None:
            async with aclosing(self._proposals.propose_as_completed(beam, k=k, length=length)) as families:
                async for index, family in families:
                    arrived[index] = family
                    news.set()
            complete.set()
            news.set()

        async def score() -> None:
            while True:
                await news.wait()
                with suppress(TimeoutError):
                    await asyncio.wait_for(complete.wait(), _COMPANY_S)
                news.clear()
                if complete.is_set():
                    return
                # The beam is named as well: a scoring session forgets whom it does not hear of.
                await self._scoring.expect(distinct([*beam, *(y for family in arrived.values() for y in family)]))

        await gather_all([draw(), score()])
        return [y for index in range(len(beam)) for y in arrived[index]]
