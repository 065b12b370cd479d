"""A made-up result as text, Markdown, JSON and chart."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import pytest

from server.commands.eval_sentiment import publish
from tests.evaluation.results import made_up
from w2s_core.evaluation.chart import draw
from w2s_core.evaluation.metrics import METRICS, Estimate
from w2s_core.evaluation.report import interval, markdown, summary_rows, table
from w2s_core.evaluation.results import as_json
from w2s_core.evaluation.settings import ABLATION, BASE, CBS, MAIN, WEAK_ALONE


def mean(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.mean


def test_columns_are_aligned() -> None:
    lines = table([["", "a", "long"], ["label", "1.0", "2"]]).splitlines()
    assert lines[0] == "         a  long"
    assert set(lines[1]) == {"─"}
    assert lines[2] == "label  1.0     2"


def test_markdown_has_as_many_columns_everywhere() -> None:
    lines = markdown(summary_rows(made_up().comparisons[0].summaries)).splitlines()
    assert {line.count("|") for line in lines} == {len(METRICS) + 2}
    assert set(lines[1]) == {"|", "-", ":"}


def test_intervals_are_shown_where_there_is_something_to_show() -> None:
    assert interval(Estimate(0.5, 0.4, 0.61), 2) == "0.50 [0.40, 0.61]"
    assert interval(Estimate(16.0, 16.0, 16.0), 0) == "16"
    assert interval(Estimate(0.5, -0.4, 0.61), 2, sign="+") == "+0.50 [-0.40, +0.61]"
    assert interval(None, 2) == "–"


def test_every_figure_is_a_mean_over_its_method_and_length() -> None:
    results = made_up()
    assert [comparison.max_tokens for comparison in results.comparisons] == [40, 160]
    for comparison in results.comparisons:
        rows = {row.condition: row for row in comparison.summaries}
        assert tuple(rows) == MAIN
        assert {row.answers for row in rows.values()} == {4 * 2}
        assert mean(rows[CBS].estimates["judge"]) == pytest.approx(0.7)
        assert rows[BASE].estimates["implicit"] == Estimate(0.5, 0.5, 0.5), "the mean of both seeds"
        assert rows[WEAK_ALONE].estimates["logprob"] is None
    assert [row.condition for row in results.ablation] == list(ABLATION)


def test_differences_are_paired_with_the_plain_model_and_with_the_search_as_published() -> None:
    found = {(d.condition, d.other): d.estimates for d in made_up(spread=0.4).comparisons[1].differences}
    better = found[CBS, BASE]["judge"]
    assert better is not None
    assert (better.mean, better.low, better.high) == pytest.approx((0.3, 0.3, 0.3)), "alike on every opener"
    assert mean(found[f"{CBS}, brakes", CBS]["judge"]) == pytest.approx(-0.2)
    assert found[WEAK_ALONE, BASE]["logprob"] is None
    assert {other for _, other in found} == {BASE, CBS}


def test_the_ablations_4x4_is_cbs_on_the_same_seeds_as_the_other_shapes() -> None:
    shapes = {row.condition: row for row in made_up().ablation}
    assert shapes["4×4"].answers == shapes["16×1"].answers == 4
    assert shapes["4×4"].estimates["implicit"] == Estimate(0, 0, 0), "seed 0 only"


def test_json_holds_settings_figures_and_answers() -> None:
    results = made_up(ablation_seeds=0)
    content = json.loads(json.dumps(as_json(results)))
    assert content["settings"]["prompts"] == 4
    assert content["ablation"] == []
    assert content["comparisons"][0]["summaries"][3]["estimates"]["judge"]["mean"] == pytest.approx(0.7)
    assert len(content["answers"]) == len(MAIN) * 4 * 2 * 2
    last = {"method": MAIN[-1], "text": f" {MAIN[-1]} text", "seed": 1, "max_tokens": 160}
    assert content["answers"][-1] | last == content["answers"][-1]


def test_the_chart_is_a_png_fit_for_a_page(tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    draw(made_up(), path)
    height, width, _ = matplotlib.image.imread(path).shape
    assert 2 < width / height < 3
    assert path.stat().st_size < 200_000


def test_publishing_prints_the_table_and_writes_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(made_up(), tmp_path / "out")
    printed = capsys.readouterr().out
    assert "judge, P(positive)" in printed
    assert (tmp_path / "out" / "sentiment.txt").read_text(encoding="utf-8") == printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"sentiment.{suffix}" for suffix in ("txt", "md", "json", "png")}
    assert (tmp_path / "out" / "sentiment.md").read_text(encoding="utf-8").count("judge, P(positive)") == 5
