"""Win rates by hand, and with the influence of length removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.judges.answers import evaluation
from w2s_core.evaluation.metrics import Estimate, bootstrap, proportion
from w2s_core.judges import tables
from w2s_core.judges.judging import Judgement
from w2s_core.judges.length_control import Comparison, length_controlled_win_rate
from w2s_core.judges.win_rates import findings

ANSWERS = {
    "base": {("p", 0): "aa", ("p", 1): "bb", ("q", 0): "cc"},
    "ours": {("p", 0): "aa", ("p", 1): "bb", ("q", 0): "cc", ("q", 1): "no rival"},
}
SCORES = {("base", "p", 0): 1.0, ("base", "p", 1): 2.0, ("base", "q", 0): 3.0}
SCORES |= {("ours", "p", 0): 2.0, ("ours", "p", 1): 2.0, ("ours", "q", 0): 1.0, ("ours", "q", 1): 9.0}


def judgements(values: dict[tuple[str, str, int], float | None]) -> list[Judgement]:
    return [
        Judgement("j", condition, prompt, seed, value, "" if value is not None else "why", (), "")
        for (condition, prompt, seed), value in values.items()
    ]


def mean(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.mean


def test_the_higher_score_wins_and_equal_scores_tie(tmp_path: Path) -> None:
    base, ours = findings(evaluation(tmp_path, ANSWERS), "j", False, judgements(dict(SCORES))).standings
    assert ours.compared == 3
    assert mean(ours.win_rate) == pytest.approx((1 + 0.5 + 0) / 3)
    assert mean(ours.score) == pytest.approx((2 + 2 + 1 + 9) / 4)
    assert mean(ours.difference) == pytest.approx((0.5 + -2) / 2), "the mean of the prompts' differences"
    assert (base.compared, base.win_rate, base.length_controlled, base.difference) == (0, None, None, None)
    assert mean(base.score) == 2.0


def test_the_interval_is_over_prompts(tmp_path: Path) -> None:
    _, ours = findings(evaluation(tmp_path, ANSWERS), "j", False, judgements(dict(SCORES))).standings
    assert ours.win_rate == proportion([[1.0, 0.5], [0.0]])


def test_a_win_rate_has_wilsons_interval_with_one_trial_a_prompt() -> None:
    # Newcombe (1998), Statistics in Medicine 17:857, table I: 81 of 263 and 15 of 148 by the score method
    for wins, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        found = proportion([[1.0]] * wins + [[0.0]] * (trials - wins))
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert proportion([[1.0]] * 10).low == pytest.approx(0.7225, abs=5e-5)
    assert proportion([[1.0] * 50, [0.0] * 50]) == proportion([[1.0], [0.0]]), "the answers to a prompt are one trial"


@pytest.mark.parametrize("rate", [0.5, 0.8, 0.9, 0.97])
def test_wilsons_interval_covers_the_rate_of_few_prompts(rate: float) -> None:
    wins = np.random.default_rng(0).binomial(20, rate, 2_000)
    found = [proportion([[1.0]] * int(w) + [[0.0]] * int(20 - w)) for w in wins]
    assert np.mean([e.low <= rate <= e.high for e in found]) > 0.9


def test_verdicts_are_the_win_rate_and_missing_ones_are_told(tmp_path: Path) -> None:
    verdicts: dict[tuple[str, str, int], float | None] = {
        ("ours", "p", 0): 1.0,
        ("ours", "p", 1): None,
        ("ours", "q", 0): 0.5,
    }
    found = findings(evaluation(tmp_path, ANSWERS), "j", True, judgements(verdicts))
    base, ours = found.standings
    assert (ours.compared, mean(ours.win_rate), ours.score, ours.difference) == (2, 0.75, None, None)
    assert (base.score, base.win_rate) == (None, None)
    assert found.without_value == {"why": 1}
    text = tables.as_text([found], "base")
    assert "Judge j: wins against base, both orders asked" in text
    assert text.endswith("1 judgement has no value: why.")
    figures = tables.as_json([found])["j"]
    assert figures["conditions"]["ours"]["win_rate"]["mean"] == 0.75
    assert figures["without_value"] == {"why": 1}


def test_a_judge_without_any_value_is_no_failure(tmp_path: Path) -> None:
    found = findings(evaluation(tmp_path, ANSWERS), "j", False, judgements(dict.fromkeys(SCORES)))
    assert all(standing.score is None and standing.win_rate is None for standing in found.standings)
    assert "7 judgements have no value: why." in tables.as_text([found], "base")


def compared(extra: np.ndarray, wins: Callable[[float], float], rng: np.random.Generator) -> tuple[Estimate, Estimate]:
    """The raw and the length-controlled win rate, where `wins` is P(win) by the extra length."""
    groups = [[Comparison(float(rng.random() < wins(d)), int(d))] for d in extra]
    controlled = length_controlled_win_rate(groups, resamples=100)
    assert controlled is not None
    return bootstrap([[c.won for c in group] for group in groups]), controlled


@pytest.mark.parametrize("seed", range(3))
def test_a_condition_that_is_only_longer_goes_to_one_half(seed: int) -> None:
    rng = np.random.default_rng(seed)
    extra = rng.normal(250, 300, 400)
    raw, controlled = compared(extra, lambda d: 1 / (1 + np.exp(-d / 100)), rng)
    assert raw.low > 0.65
    assert abs(controlled.mean - 0.5) < 0.12
    assert controlled.low < 0.5 < controlled.high


def test_a_judge_that_always_takes_the_longer_answer_is_corrected_in_part() -> None:
    rng = np.random.default_rng(0)
    raw, controlled = compared(rng.normal(250, 300, 200), lambda d: float(d > 0), rng)
    assert raw.mean > 0.75
    assert controlled.mean < raw.mean - 0.1


@pytest.mark.parametrize("seed", range(3))
def test_without_an_effect_of_length_both_agree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    extra = rng.normal(250, 300, 400)
    raw, controlled = compared(extra, lambda _: 0.7, rng)
    assert abs(controlled.mean - raw.mean) < 0.06
    assert controlled.low > 0.55


def test_a_better_condition_that_is_shorter_gains_by_the_control() -> None:
    rng = np.random.default_rng(0)
    raw, controlled = compared(rng.normal(-250, 300, 400), lambda d: 1 / (1 + np.exp(-1 - d / 150)), rng)
    assert controlled.mean > raw.mean + 0.1


@pytest.mark.parametrize(("won", "least", "most"), [(1.0, 0.9, 1.0), (0.0, 0.0, 0.1), (0.5, 0.5, 0.5)])
def test_one_sided_or_equal_lengths_are_no_failure(won: float, least: float, most: float) -> None:
    for lengths in ([0] * 8, [1, -3, 5, -9, 2, 4, -4, 8]):
        estimate = length_controlled_win_rate([[Comparison(won, length)] for length in lengths], resamples=50)
        assert estimate is not None
        assert least <= estimate.low <= estimate.mean <= estimate.high <= most


@pytest.mark.parametrize("sign", [1, -1])
def test_there_is_no_control_where_all_answers_are_longer_or_all_are_shorter(sign: int) -> None:
    groups = [[Comparison(1.0, sign * length)] for length in range(1, 30)]
    assert length_controlled_win_rate(groups) is None
