"""Random draws depend on (key, position) alone, are uniform, and do not repeat between lineages."""

from __future__ import annotations

import math

from w2s_core.search.randomness import copy_key, root_key, successor_key, uniform


def test_known_values_never_change() -> None:
    """Seeds are promises: an answer must be reproducible with the next release."""
    assert root_key(0) == 16294208416658607535
    assert uniform(root_key(42), 0) == uniform(root_key(42), 0)
    assert root_key(5) == root_key(5 + 2**64)


def test_the_first_successor_inherits_and_others_differ() -> None:
    key = root_key(1)
    assert successor_key(key, 3, 0) == key == copy_key(key, 0)
    family = {successor_key(key, t, i) for t in range(50) for i in range(1, 20)} | {copy_key(key, i) for i in range(20)}
    assert len(family) == 50 * 19 + 20


def test_draws_are_uniform_and_uncorrelated() -> None:
    """20,000 draws in 20 cells: chi² with 19 degrees of freedom exceeds 60 with p < 10⁻⁵; lag-1 correlation exceeds
    6/√n with p < 10⁻⁸."""
    draws = [uniform(successor_key(root_key(9), 0, i), t) for i in range(200) for t in range(100)]
    assert all(0 <= u < 1 for u in draws)
    cells = [0] * 20
    for u in draws:
        cells[int(u * 20)] += 1
    assert sum((c - 1000) ** 2 / 1000 for c in cells) < 60
    mean = sum(draws) / len(draws)
    lagged = sum((a - mean) * (b - mean) for a, b in zip(draws, draws[1:], strict=False)) / len(draws) * 12
    assert abs(lagged) < 6 / math.sqrt(len(draws))
