"""A made-up result as text, Markdown, JSON and chart."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import pytest

from tests.evaluation.results import JUDGED, made_up
from w2s_core.evaluation.chart import draw
from w2s_core.evaluation.cli import publish
from w2s_core.evaluation.metrics import Estimate
from w2s_core.evaluation.report import interval, markdown, report, summary_rows, table
from w2s_core.evaluation.results import as_json
from w2s_core.evaluation.settings import ABLATION, BASE, BEST_OF, CBS, MAIN


def test_columns_are_aligned() -> None:
    lines = table([["", "a", "long"], ["label", "1.0", "2"]]).splitlines()
    assert lines[0] == "         a  long"
    assert set(lines[1]) == {"─"}
    assert lines[2] == "label  1.0     2"


def test_markdown_has_as_many_columns_everywhere() -> None:
    lines = markdown(summary_rows(made_up().main)).splitlines()
    assert {line.count("|") for line in lines} == {len(MAIN) + 2}
    assert set(lines[1]) == {"|", "-", ":"}


def test_intervals_are_shown_where_there_is_something_to_show() -> None:
    assert interval(Estimate(0.5, 0.4, 0.61), 2) == "0.50 [0.40, 0.61]"
    assert interval(Estimate(16.0, 16.0, 16.0), 0) == "16"
    assert interval(None, 2) == "–"


def test_the_report_says_whether_the_order_holds() -> None:
    assert f"{CBS} > {BEST_OF} > {BASE}: yes" in report(made_up())
    assert "do not overlap: yes" in report(made_up())
    worse = report(made_up(JUDGED | {BEST_OF: 0.75}))
    assert f"{CBS} > {BEST_OF} > {BASE}: NO" in worse
    assert "do not overlap: yes" in worse
    assert "do not overlap: NO" in report(made_up(spread=0.4))


def test_every_figure_is_a_mean_over_its_method() -> None:
    results = made_up()
    assert [row.condition for row in results.main] == list(MAIN)
    assert [row.condition for row in results.ablation] == list(ABLATION)
    assert results.judged(CBS).mean == pytest.approx(0.7)
    assert results.differences[f"judge: {CBS} − {BASE}"].mean == pytest.approx(0.3)
    assert results.main[0].estimates["implicit"] == Estimate(0.5, 0.5, 0.5), "the mean of both seeds"
    assert results.main[1].estimates["logprob"] is None


def test_the_ablations_4x4_is_cbs_on_the_same_seeds_as_the_other_shapes() -> None:
    shapes = {row.condition: row for row in made_up().ablation}
    assert shapes["4×4"].answers == shapes["16×1"].answers == 4
    assert shapes["4×4"].estimates["implicit"] == Estimate(0, 0, 0), "seed 0 only"


def test_json_holds_settings_figures_and_answers() -> None:
    results = made_up(ablation_seeds=0)
    content = json.loads(json.dumps(as_json(results)))
    assert content["settings"]["prompts"] == 4
    assert content["ablation"] == []
    assert content["methods"][3]["estimates"]["judge"]["mean"] == pytest.approx(0.7)
    assert len(content["answers"]) == 4 * 4 * 2
    assert content["answers"][-1] | {"method": CBS, "text": f" {CBS} text", "seed": 1} == content["answers"][-1]


@pytest.mark.parametrize("ablation_seeds", [0, 1])
def test_the_chart_is_a_png_fit_for_a_readme(tmp_path: Path, ablation_seeds: int) -> None:
    path = tmp_path / "chart.png"
    draw(made_up(ablation_seeds=ablation_seeds), path)
    height, width, _ = matplotlib.image.imread(path).shape
    assert width / height > (3 if ablation_seeds else 2)
    assert path.stat().st_size < 150_000


def test_publishing_prints_the_table_and_writes_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(made_up(), tmp_path / "out")
    printed = capsys.readouterr().out
    assert "judge, P(positive)" in printed
    assert (tmp_path / "out" / "sentiment.txt").read_text(encoding="utf-8") == printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"sentiment.{suffix}" for suffix in ("txt", "md", "json", "png")}
    assert (tmp_path / "out" / "sentiment.md").read_text(encoding="utf-8").count("judge, P(positive)") == 2
