"""Dashboard and alert rules use valid PromQL and existing metrics and labels, and the docs explain every metric."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.telemetry.test_metrics import NAMES

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rules.yml"
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
SCRAPED = {"instance", "job"}  # labels that Prometheus adds


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[Any]:
    found = [pytest.param(rule["expr"], id=rule["alert"]) for rule in rules()]
    for panel in panels():
        found += [pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}") for target in panel["targets"]]
    return found


def parsed(expression: str) -> Any:
    return promql_parser.parse(expression.replace("$__rate_interval", "5m"))


def selectors(node: Any) -> Iterator[Any]:
    """Every vector selector under this node of a query."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if (child := getattr(node, name, None)) is not None:
            yield from selectors(child)
    for child in getattr(node, "args", None) or []:
        yield from selectors(child)


def metric_of(name: str) -> str:
    base = re.sub(r"_(bucket|count|sum)$", "", name)
    return base if NAMES.get(base, ("", set()))[0] == "histogram" else name


@pytest.mark.parametrize("expression", queries())
def test_queries_ask_for_metrics_and_labels_that_exist(expression: str) -> None:
    names = [selector.name for selector in selectors(parsed(expression))]
    assert names, "a query of nothing"
    known: set[str] = set(SCRAPED)
    for name in names:
        assert name == "up" or metric_of(name) in NAMES
        known |= NAMES.get(metric_of(name), ("", set()))[1]
    assert sorted(set(re.findall(r"\bw2s_\w+", expression))) == sorted(set(names) - {"up"}), "the walk missed one"
    for group in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= known | {"le"}
    for matchers in re.findall(r"\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= known


def test_the_walk_through_a_query_finds_every_selector() -> None:
    found = selectors(
        parsed("sum by (le) (rate(a_total[5m])) / (b > 1) and histogram_quantile(0.5, rate(c_bucket[5m]))")
    )
    assert [selector.name for selector in found] == ["a_total", "b", "c_bucket"]


def test_the_dashboard_shows_every_metric() -> None:
    text = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    shown = {metric_of(name) for name in re.findall(r"\bw2s_\w+", text)}
    assert shown == set(NAMES)


def test_legends_name_labels_that_their_query_keeps() -> None:
    for panel in panels():
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                kept = re.findall(r"by \(([^)]*)\)", target["expr"])
                names = SCRAPED.union(*(NAMES[metric_of(n)][1] for n in re.findall(r"\bw2s_\w+", target["expr"])))
                assert label in (re.findall(r"\w+", kept[0]) if kept else names)


def test_alerts_say_how_urgent_they_are_and_what_is_wrong() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


def test_the_dashboard_uses_the_source_that_is_provisioned() -> None:
    path = ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml"
    [source] = yaml.safe_load(path.read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in panels()} == {source["uid"]}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_metric_and_alert_is_explained() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    explained = set(re.findall(r"^\| `(w2s_\w+)", text, re.MULTILINE))
    assert explained == set(NAMES)
    for name, (_, labels) in NAMES.items():
        [row] = re.findall(rf"^\| `{name}(?:{{([^}}]*)}})?` ", text, re.MULTILINE)
        assert set(filter(None, row.split(","))) == (labels if name != "w2s_build_info" else set())
    assert {rule["alert"] for rule in rules()} == set(re.findall(r"`(W2S\w+)`", text))
