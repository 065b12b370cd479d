"""The statistics of the results, and their Markdown and JSON."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.cases import Run, cases
from benchmarks.figures import Figure, Spread, Trial, percentile, ratios, speeds
from benchmarks.report import as_json, phases, table
from benchmarks.settings import Settings, Workload

FAST = [Trial(60, 5), Trial(60, 6), Trial(60, 10)]  # 12, 10, 6 tokens a second
SLOW = [Trial(60, 15), Trial(60, 12), Trial(60, 60)]  # 4, 5, 1


def test_speeds_are_medians_with_extremes() -> None:
    assert speeds(FAST) == Spread(10, 6, 12)
    assert str(speeds(FAST)) == "10 (6 .. 12)"


def test_ratios_are_taken_repeat_by_repeat() -> None:
    """3, 2 and 6: not the ratio of the medians, 2.5."""
    assert ratios(FAST, SLOW) == Spread(3, 2, 6)
    with pytest.raises(ValueError, match="shorter"):
        ratios(FAST, SLOW[:2])


@pytest.mark.parametrize(("at_most", "target", "reached"), [(False, 3, True), (False, 3.1, False), (True, 3, True)])
def test_a_target_is_judged_by_the_median(at_most: bool, target: float, reached: bool) -> None:
    assert Figure("x", "x", target, at_most, ratios(FAST, SLOW)).reached is reached
    assert Figure("x", "x", target, at_most).reached is None


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 50), (99, 99), (100, 100)])
def test_percentiles_are_values_that_occurred(percent: float, value: int) -> None:
    assert percentile(range(1, 101)[::-1], percent) == value
    assert percentile([7.0], percent) == 7.0
    assert math.isnan(percentile([], percent))


def test_the_table_tells_target_median_spread_and_verdict() -> None:
    figures = [
        Figure("a", "a ÷ b", 2, False, Spread(3, 2, 6), {"a": Spread(10, 6, 12), "b": Spread(4, 1, 5)}),
        Figure("c", "c", 1.2, True, Spread(1.3, 1, 2), note="1 answers ended early"),
        Figure("d", "d", 1, note="not at hand"),
    ]
    lines = table(figures).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["a ÷ b", "≥ 2", "3 (2 .. 6)", "yes", "10 ÷ 4"]
    assert "≤ 1.2" in lines[3]
    assert "| no " in lines[3]
    assert "not at hand" in lines[4]


def test_json_holds_figures_and_trials() -> None:
    run = Run("naive", Workload(20, 60, "demo"))
    trials = {run: [Trial(60, 10, phases={"scoring": 5.0, "decoding": 2.5})]}
    content = json.loads(as_json({"seconds": 1}, [Figure("a", "a", 2, value=Spread(3, 2, 6))], trials))
    assert content["figures"][0]["reached"] is True
    assert content["trials"][0]["trials"][0]["phases"]["scoring"] == 5
    assert "scoring 50%, decoding 25%" in phases(trials)


@pytest.mark.parametrize("shrink", [1, 2])
def test_cases_have_names_of_their_own_and_runs_have_one_group(shrink: int) -> None:
    wanted = cases(Settings(shrink=shrink))
    assert len({case.name for case in wanted}) == len(wanted)
    groups: dict[Run, set[str]] = {}
    for case in wanted:
        for run in case.runs:
            groups.setdefault(run, set()).add(case.group)
    assert all(len(found) == 1 for found in groups.values())
    assert all(len(set(map(str, case.runs))) == len(case.runs) for case in wanted), "systems need labels of their own"


def test_a_figure_tells_what_disturbed_it() -> None:
    case = next(case for case in cases(Settings()) if case.name == "speed-445")
    assert case.figure({case.top: [Trial(60, 10, foreign=0.01)]}).note == ""
    note = case.figure({case.top: [Trial(60, 10, ended=2), Trial(60, 10, foreign=0.4)]}).note
    assert note == "2 answers ended early, others took up to 40% of the machine"
