"""The page of an evaluation, `report.html`: settings, win rates and costs, charts, and all answers side by side.

It is one file without anything from elsewhere. Whatever a model or a judge wrote is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from w2s_core.evaluation.metrics import RUN_METRICS
from w2s_core.evaluation.records import AnswerRecord, EvalPrompt
from w2s_core.evaluation.report import interval
from w2s_core.evaluation.run import Evaluation
from w2s_core.judges.cost_chart import Point, cost_chart
from w2s_core.judges.judging import Judgement
from w2s_core.judges.tables import DIGITS, without_value
from w2s_core.judges.win_rates import Findings, Standing

FILE = "report.html"
COLORS = ("#8a94a0", "#d1495b", "#e9a23b", "#3f83c9", "#2a9d8f", "#9b6fc4", "#7aa05a", "#c96f9b", "#5fb3c9", "#b58a5a")
"""Of the conditions, in their order; they stand out on white and on black."""
_COSTS = [metric for metric in RUN_METRICS if metric.key in ("tokens", "sampled", "seconds", "ended")]
_VERDICTS = {1.0: "won", 0.5: "tie", 0.0: "lost"}


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer of the page, with its judgements in the order of the judges."""

    record: AnswerRecord
    judgements: Sequence[Judgement]


def write_page(evaluation: Evaluation, found: Sequence[Findings], judgements: Sequence[Judgement]) -> Path:
    """Writes the page into the evaluation's folder."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["verdict"] = lambda value: _VERDICTS[value]
    experiment = evaluation.experiment
    names = [condition.name for condition in experiment.conditions]
    page = environment.get_template("page.html.j2").render(
        baseline=experiment.baseline,
        conditions=experiment.conditions,
        colors={name: COLORS[i % len(COLORS)] for i, name in enumerate(names)},
        settings=_settings(evaluation),
        judges=[_judge(evaluation, findings) for findings in found],
        costs=[metric.label for metric in _COSTS],
        cost_rows={s.condition: [interval(s.estimates[m.key], m.digits) for m in _COSTS] for s in evaluation.summaries},
        answered={s.condition: s.answers for s in evaluation.summaries},
        pairwise={findings.judge: findings.pairwise for findings in found},
        prompts=_prompts(evaluation, judgements),
    )
    path = evaluation.folder / FILE
    path.write_text(page, encoding="utf-8")
    return path


def _settings(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What the experiment was, as names and texts."""
    experiment = evaluation.experiment
    rows = [("prompts", str(len(experiment.prompts))), ("baseline", experiment.baseline)]
    if experiment.system is not None:
        rows.append(("system message", experiment.system))
    for condition in experiment.conditions:
        parts: dict[str, Any] = {"model": condition.model, "guidance": condition.guidance, **condition.sampling}
        text = ", ".join(f"{key} {_shown(value)}" for key, value in parts.items() if value is not None)
        rows.append((condition.name, f"{text}, {condition.seeds} per prompt"))
    rows += [(f"judge {name}", _shown(options)) for name, options in experiment.judges.items()]
    return rows


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _judge(evaluation: Evaluation, findings: Findings) -> dict[str, Any]:
    """A judge's table and chart."""
    sampled = {summary.condition: summary.estimates["sampled"] for summary in evaluation.summaries}
    points = [
        Point(cost, standing.win_rate, COLORS[i % len(COLORS)])
        for i, standing in enumerate(findings.standings)
        if (cost := sampled[standing.condition]) is not None
        and (standing.win_rate is not None or standing.condition == evaluation.experiment.baseline)
    ]
    return {
        "name": findings.judge,
        "pairwise": findings.pairwise,
        "rows": {standing.condition: _cells(standing, findings.pairwise) for standing in findings.standings},
        "chart": cost_chart(points),
        "without_value": without_value(findings),
    }


def _cells(standing: Standing, pairwise: bool) -> list[str]:
    cells = [interval(standing.win_rate, DIGITS), interval(standing.length_controlled, DIGITS)]
    if not pairwise:
        cells += [interval(standing.score, DIGITS), interval(standing.difference, DIGITS, sign="+")]
    return [*cells, str(standing.compared or "–")]


def _prompts(evaluation: Evaluation, judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Every prompt, with its answers by condition."""
    judged: dict[tuple[str, str, int], list[Judgement]] = {}
    for judgement in judgements:
        judged.setdefault((judgement.condition, judgement.prompt, judgement.seed), []).append(judgement)
    answers: dict[str, dict[str, list[_Answer]]] = {}
    for record in evaluation.answers:
        row = answers.setdefault(record.prompt, {})
        row.setdefault(record.condition, []).append(_Answer(record, judged.get(record.key, [])))
    experiment = evaluation.experiment
    return [_prompt(prompt, experiment.system, answers.get(prompt.id, {})) for prompt in experiment.prompts]


def _prompt(prompt: EvalPrompt, system: str | None, answers: Mapping[str, Sequence[_Answer]]) -> dict[str, Any]:
    *before, _ = prompt.messages((), system)
    return {"prompt": prompt, "before": before if prompt.chat else prompt.history, "answers": answers}
