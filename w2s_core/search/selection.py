"""Selection: how candidates are ranked, and which of them stay in the beam; by default as in the paper.

The score log π_tuned − log π_untuned has no brakes: "It is amazing. It is amazing." pleases a pair more each time. The
rank of an answer y of n tokens, by `Guidance`'s options ρ (`repetition`), η (`fluency`) and α (`length_penalty`), is

    (score(y) − ρ · repeated word trigrams of y + η · log π_base(y|x)) / n^α   in nats.

η is the weight of the KL term in max E[score] − η·KL(π‖π_base), whose likelihood half this is.

Best-of-N can give up unpromising answers before they are complete: speculative rejection (Sun et al. 2024,
arXiv:2410.20290).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from heapq import nlargest

from w2s_core.guidance import Guidance
from w2s_core.search.combination import combined_scores
from w2s_core.search.randomness import uniform
from w2s_core.search.repetition import RepetitionState, advance, count_repeats
from w2s_core.types import MIN_LOGPROB, Hypothesis

_ROUND = 1 << 40  # positions of the noise of each round, beyond those of tokens


class Selector:
    """Ranks the candidates of one search and selects its beams, round by round.

    `budget` is the number of tokens that an answer may have, which a schedule divides into rounds. `n` answers are
    wanted in the end.
    """

    def __init__(self, guidance: Guidance | None = None, budget: int = 0, n: int = 1) -> None:
        self._n = n
        self._budget = budget
        self._guidance = guidance or Guidance()
        self._schedule = successors_by_round(self._guidance, budget)
        self._round = 0
        self._repetitions: dict[int, RepetitionState] = {}  # of the hypotheses in the beam, by key

    @property
    def keeps_copies(self) -> bool:
        """Whether unfinished answers that are still alike stay apart, since each will go on by itself."""
        return self._guidance.method == "best_of_n"

    def successors(self, k: int) -> int:
        """K of the next round: `k`, unless there is a schedule, or the answers have begun and only go on."""
        if self._guidance.method == "best_of_n" and self._round:
            return 1
        return self._schedule[min(self._round, len(self._schedule) - 1)] if self._schedule else k

    def ended(self, beam: Sequence[Hypothesis]) -> bool:
        """Whether the search is over before its budget is spent."""
        return all(y.finished for y in (beam[: self._n] if self._guidance.early_stopping else beam))

    def rank(self, pool: Sequence[Hypothesis]) -> list[Hypothesis]:
        """The hypotheses that compete in a round, with their ranks."""
        scores = combined_scores(pool, self._guidance)
        return [replace(y, rank=self._rank(y.as_scored, score)) for y, score in zip(pool, scores, strict=True)]

    def select(self, pool: Sequence[Hypothesis], w: int) -> list[Hypothesis]:
        """The `w` of the ranked hypotheses that stay, best first; of equal ones those that come first.

        With early rejection: the finished ones, and as many unfinished ones as `survivors` says.
        """
        going_on = (self._round + 1) * self._guidance.chunk_length < self._budget and not all(y.finished for y in pool)
        if self._guidance.early_rejection and self._guidance.chunked and going_on:
            finished, live = [y for y in pool if y.finished], [y for y in pool if not y.finished]
            wanted = max(self._n - len(finished), survivors(self._guidance, len(live)))
            chosen = [*finished, *self._chosen(live, wanted)]
        else:
            chosen = self._chosen(pool, w)
        beam = sorted(chosen, key=lambda y: y.rank, reverse=True)
        self._round += 1
        if self._guidance.repetition:
            self._repetitions = {y.key: advance(y.as_scored.text, self._repetition_of(y)) for y in beam}
        return beam

    def _rank(self, y: Hypothesis, score: float) -> float:
        guidance = self._guidance
        if guidance.repetition:
            score -= guidance.repetition * count_repeats(y.text, self._repetition_of(y))
        if guidance.fluency:
            score += guidance.fluency * sum(max(nats, MIN_LOGPROB) for nats in y.logprobs)
        return score / max(1, y.length) ** guidance.length_penalty if guidance.length_penalty else score

    def _repetition_of(self, y: Hypothesis) -> RepetitionState | None:
        """What is known of the answer's beginning: of itself, if it was in the beam, or of its parent.

        A first successor has its parent's key.
        """
        state = self._repetitions.get(y.key)
        return self._repetitions.get(y.parent.key) if state is None and y.parent is not None else state

    def _chosen(self, pool: Sequence[Hypothesis], w: int) -> list[Hypothesis]:
        select = self._guidance.select
        if isinstance(select, str) or len(pool) <= w:
            return nlargest(w, pool, key=lambda y: y.rank)
        [(kind, strength)] = select.items()
        ranks = [y.rank for y in pool]
        weights = [r / strength for r in ranks] if kind == "softmax" else pessimistic_log_weights(ranks, strength)
        noisy = [(weight + self._gumbel(y), y.rank) for weight, y in zip(weights, pool, strict=True)]
        return [pool[i] for i in nlargest(w, range(len(pool)), key=noisy.__getitem__)]

    def _gumbel(self, y: Hypothesis) -> float:
        """Gumbel noise: the W largest sums of it and log-weights are W draws without replacement (Vieira 2014)."""
        u = uniform(y.key, _ROUND + self._round)
        return -math.log(-math.log(u)) if u > 0 else -math.inf


def survivors(guidance: Guidance, unfinished: int) -> int:
    """How many of the unfinished answers go on after a round with early rejection; at least one of any."""
    return unfinished - math.floor(unfinished * guidance.early_rejection)


def pessimistic_log_weights(ranks: Sequence[float], beta: float) -> list[float]:
    """Log-weights of inference-time pessimism (Huang et al. 2025, arXiv:2503.21878): log (rank − λ)₊, with λ such that
    the mean of (rank − λ)₊ / β is 1; −∞ for a weight of 0."""
    ordered, total = sorted(ranks, reverse=True), 0.0
    threshold = ordered[0] - beta * len(ranks)
    for count, rank in enumerate(ordered, start=1):
        if rank <= threshold:
            break
        total += rank
        threshold = (total - beta * len(ranks)) / count
    return [math.log(rank - threshold) if rank > threshold else -math.inf for rank in ranks]


def successors_by_round(guidance: Guidance, budget: int) -> tuple[int, ...]:
    """K of each round under a decaying schedule; empty where K is constant.

    K_i = max(1, round(c·ρ^i)), with c such that together they draw at most as many tokens as K in every round
    (AdaSearch, arXiv:2510.23334). Earlier rounds have the precedence.
    """
    if isinstance(guidance.schedule, str) or guidance.method != "cbs" or budget < 1:
        return ()
    return _decaying(guidance.schedule["decay"], guidance.successors, guidance.chunk_length, budget)


@lru_cache(maxsize=64)  # a request asks several times
def _decaying(decay: float, k: int, length: int, budget: int) -> tuple[int, ...]:
    sizes = [min(length, budget - start) for start in range(0, budget, length)]
    first = k * budget / sum(decay**i * size for i, size in enumerate(sizes))
    schedule, left = list[int](), (k - 1) * budget  # tokens that are left when each round has drawn one successor
    for i, size in enumerate(sizes):
        successors = max(1, min(round(first * decay**i), 1 + left // size))
        left -= (successors - 1) * size
        schedule.append(successors)
    return tuple(schedule)
