"""The metrics by hand, and the coverage of their confidence intervals."""

from __future__ import annotations

import numpy as np
import pytest

from w2s_core.evaluation.metrics import Estimate, bootstrap, difference, distinct_2, words


def test_words_are_lower_case_without_punctuation() -> None:
    assert words(" It isn't Bad -- it's 2 good!") == ["it", "isn't", "bad", "it's", "2", "good"]


def test_distinct_2_counts_different_pairs() -> None:
    assert distinct_2(["a b a b"]) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct_2(["a b", "a b"]) == pytest.approx(1 / 2)
    assert distinct_2(["a b", "c d"]) == 1.0, "b c is no pair: texts do not join"
    assert distinct_2(["alone", ""]) is None


def test_the_mean_is_over_answers_and_lies_in_its_interval() -> None:
    estimate = bootstrap([[1.0, 2.0], [6.0]])
    assert estimate.mean == pytest.approx(3.0)
    assert estimate.low < estimate.mean < estimate.high


def test_equal_values_leave_no_doubt() -> None:
    assert bootstrap([[2.0]] * 5) == Estimate(2.0, 2.0, 2.0)


def test_the_interval_is_the_same_every_time() -> None:
    groups = [[0.1, 0.5], [0.9, 0.3], [0.2, 0.2]]
    assert bootstrap(groups) == bootstrap(groups)


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    """50 prompts of two answers that share the prompt's own level: of 300 intervals 95 % cover, less a little because
    50 are few. Were answers resampled instead of prompts, about 83 % would. Fewer than 90 % have probability 1e-4."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        level = generator.normal(0.3, 1.0, size=(50, 1))
        estimate = bootstrap((level + generator.normal(0, 0.3, size=(50, 2))).tolist(), resamples=1000)
        covered += estimate.low <= 0.3 <= estimate.high
    assert 0.90 <= covered / 300 <= 0.99


def test_a_difference_is_paired_by_prompt() -> None:
    easy_and_hard = [[0.0], [1.0], [0.1], [0.9]]
    better = [[v + 0.05 for v in group] for group in easy_and_hard]
    estimate = difference(better, easy_and_hard)
    assert (estimate.low, estimate.high) == (pytest.approx(0.05), pytest.approx(0.05))
    assert bootstrap(better).low < bootstrap(easy_and_hard).high, "unpaired, the prompts' spread would hide it"
