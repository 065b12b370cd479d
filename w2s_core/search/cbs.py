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

from w2s_core.interfaces import Proposer, Scoring
from w2s_core.search.selection import Selector
from w2s_core.types import Hypothesis, Round


async def search(
    proposals: Proposer,
    scoring: Scoring,
    start: Sequence[Hypothesis],
    *,
    w: int,
    k: int,
    length: int,
    budget: int,
    selector: Selector | None = None,
) -> AsyncGenerator[Round]:
    """Searches from the hypotheses `start` and yields every round; the beam of the last one is H, best first.

    `w`, `k` and `length` are W, K and L; `length` and `budget` are in tokens of π_base. Candidates of equal rank keep
    the order in which they were proposed, behind finished hypotheses, so that equal input gives equal output. The rank
    is the score, unless the `selector` has options; it goes on with its round, where a search is resumed.
    """
    beam, selector = list(start), selector or Selector()
    while budget > 0 and not selector.ended(beam):
        finished = [y for y in beam if y.finished]  # carried over unchanged: each competes once, not K times
        live = [y for y in beam if not y.finished]
        successors = await proposals.propose(live, k=selector.successors(k), length=min(length, budget))
        pool = distinct([*finished, *successors], last_round=budget <= length, copies=selector.keeps_copies)
        candidates = pool[len(finished) :]
        scores = await scoring.score(candidates) if candidates else []
        scored = [replace(y, score=s.total, scores=s.pairs) for y, s in zip(candidates, scores, strict=True)]
        ranked = selector.rank(finished + scored)
        beam = selector.select(ranked, w)
        budget -= length
        yield Round(ranked[len(finished) :], beam, proposed=successors, carried=ranked[: len(finished)])


def distinct(hypotheses: Iterable[Hypothesis], *, last_round: bool = False, copies: bool = False) -> list[Hypothesis]:
    """Merges duplicates into the first of them.

    Two hypotheses that may still grow are equal if their tokens are, because they continue from those; with `copies`
    if their keys are, too. Answers that do not grow any more, as all in the last round, are equal if their text is and
    they ended alike.
    """
    first: dict[tuple[object, ...], Hypothesis] = {}
    for y in hypotheses:
        answer = y.text if y.finished or last_round else (y.tokens, y.key) if copies else y.tokens
        finish_reason = y.finish_reason or ("length" if last_round else None)
        first.setdefault((answer, y.ended, finish_reason), y)
    return list(first.values())
