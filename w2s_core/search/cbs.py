"""Chunk-level beam search (CBS) guided by a pair: Zhou et al. 2024, arXiv:2405.19262, section 4, algorithm 1.

    H = W copies of (x, "")
    while some y' in H is unfinished and the token budget is not spent:
        C = { y'∘chunk : y' in H unfinished, K chunks of ≤ L tokens sampled i.i.d. from π_base(·|x,y') }
        H = top-W of distinct( C ∪ finished(H) )  by  Σ_j w_j · [ log π_tuned_j(y'|x) − log π_untuned_j(y'|x) ]
    return H, best first

x is the prompt and y' an answer so far, a hypothesis. H is the beam of W hypotheses and C are the candidates, K
successors of each, a chunk of at most L tokens longer. π_base is the large model; (π_tuned_j, π_untuned_j) is the j-th
pair of small models, with weight w_j.

Best-of-N is the same search with one copy, K = N and a chunk as long as the budget.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import replace
from heapq import nlargest

from w2s_core.interfaces import Proposer, Scoring
from w2s_core.types import Hypothesis, Round


async def search(
    proposals: Proposer, scoring: Scoring, start: Sequence[Hypothesis], *, w: int, k: int, length: int, budget: int
) -> AsyncGenerator[Round]:
    """Searches from the hypotheses `start` and yields every round; the beam of the last one is H, best first.

    `w`, `k` and `length` are W, K and L; `length` and `budget` are in tokens of π_base. Candidates of equal score keep
    the order in which they were proposed, so that equal input gives equal output.
    """
    beam = list(start)
    while budget > 0 and not all(y.finished for y in beam):
        live = [y for y in beam if not y.finished]
        candidates = distinct(await proposals.propose(live, k=k, length=min(length, budget)))
        scores = await scoring.score(candidates)
        scored = [replace(y, score=s.total, scores=s.pairs) for y, s in zip(candidates, scores, strict=True)]
        finished = [y for y in beam if y.finished]  # carried over unchanged: each competes once, not K times
        beam = nlargest(w, finished + scored, key=lambda y: y.score)
        budget -= length
        yield Round(scored, beam)


def distinct(candidates: Iterable[Hypothesis]) -> list[Hypothesis]:
    """Merges duplicates into the first of them: equal token ids, ended alike, with equal text."""
    first: dict[tuple[object, ...], Hypothesis] = {}
    for y in candidates:
        first.setdefault((y.tokens, y.ended, y.finish_reason, y.text), y)
    return list(first.values())
