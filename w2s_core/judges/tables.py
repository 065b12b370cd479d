"""Tables of win rates as text, and their JSON form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from w2s_core.evaluation.report import interval, table
from w2s_core.judges.win_rates import Findings, Standing

DIGITS = 2


def as_text(found: Sequence[Findings], baseline: str) -> str:
    """A table for each judge, under a line that names it, and what has no value."""
    return "\n\n".join(_section(findings, baseline) for findings in found)


def as_json(found: Sequence[Findings]) -> dict[str, Any]:
    """By judge and condition, for `json.dump`; intervals as {mean, low, high}."""
    return {
        findings.judge: {
            "pairwise": findings.pairwise,
            "conditions": {standing.condition: _figures(standing) for standing in findings.standings},
            "without_value": dict(findings.without_value),
        }
        for findings in found
    }


def without_value(findings: Findings) -> list[str]:
    """A sentence for each reason for which judgements have no value."""
    return [
        f"{count} {'judgement has' if count == 1 else 'judgements have'} no value: {reason}."
        for reason, count in findings.without_value.items()
    ]


def _figures(standing: Standing) -> dict[str, Any]:
    figures = asdict(standing)
    del figures["condition"]
    return figures


def _section(findings: Findings, baseline: str) -> str:
    kind = "both orders asked" if findings.pairwise else "by the higher score"
    head = ["", "compared", "win rate", "length-controlled"] + ([] if findings.pairwise else ["score", "− baseline"])
    rows = [head, *(_row(standing, findings.pairwise) for standing in findings.standings)]
    title = f"Judge {findings.judge}: wins against {baseline}, {kind}"
    return "\n".join([title, "", table(rows), *without_value(findings)])


def _row(standing: Standing, pairwise: bool) -> list[str]:
    rates = [interval(value, DIGITS) for value in (standing.win_rate, standing.length_controlled)]
    scores = [interval(standing.score, DIGITS), interval(standing.difference, DIGITS, sign="+")]
    return [standing.condition, str(standing.compared or "–"), *rates, *([] if pairwise else scores)]
