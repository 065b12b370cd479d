"""Formats results as tables: aligned text for a terminal, Markdown for a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from w2s_core.evaluation.metrics import METRICS, Estimate, Metric
from w2s_core.evaluation.results import COMPARED, Comparison, Results
from w2s_core.evaluation.scoring import Summary

Rows = Sequence[Sequence[str]]


def report(results: Results) -> str:
    """The tables with headings, and the judges' AUC."""
    return "\n\n".join([_heading(results), *_titled_tables(results, table), _notes(results)])


def markdown_tables(results: Results) -> str:
    """The same tables in Markdown."""
    return "\n\n".join(_titled_tables(results, markdown))


def _titled_tables(results: Results, layout: Callable[[Rows], str]) -> list[str]:
    parts: list[str] = []
    for comparison in results.comparisons:
        parts += [f"Answers of up to {comparison.max_tokens} tokens:", layout(summary_rows(comparison.summaries))]
        parts += ["The same, less another method, paired by opener:", layout(difference_rows(comparison))]
    if results.ablation:
        length, seeds = results.settings.max_tokens[0], results.settings.ablation_seeds
        parts += [
            f"Beam width × successors at equal cost, chunks of 5 tokens, {length} tokens, {seeds} seed(s):",
            layout(summary_rows(results.ablation)),
        ]
    return parts


def table(rows: Rows) -> str:
    """A text table: the first column left-aligned, the others right-aligned, with a rule below the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join([lines[0], "─" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def markdown(rows: Rows) -> str:
    """A Markdown table: the first column left-aligned, the others right-aligned."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *body])


def summary_rows(summaries: Sequence[Summary], metrics: Sequence[Metric] = METRICS) -> list[list[str]]:
    """Table rows: one condition per row, one metric per column, cells `mean [low, high]`."""
    head = ["", *(metric.label for metric in metrics)]
    return [head] + [
        [s.condition, *(interval(s.estimates[metric.key], metric.digits) for metric in metrics)] for s in summaries
    ]


def difference_rows(comparison: Comparison) -> list[list[str]]:
    """Table rows: one difference per row, one metric per column."""
    compared = [metric for metric in METRICS if metric.key in COMPARED]
    return [["", *(metric.label for metric in compared)]] + [
        [
            f"{difference.condition} − {difference.other}",
            *(interval(difference.estimates[metric.key], metric.digits, sign="+") for metric in compared),
        ]
        for difference in comparison.differences
    ]


def interval(estimate: Estimate | None, digits: int, sign: str = "") -> str:
    """An estimate as `0.53 [0.49, 0.57]`, or a dash if there is none. With `sign` "+" every number has its sign."""
    if estimate is None:
        return "–"
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in (estimate.mean, estimate.low, estimate.high))
    return mean + (f" [{low}, {high}]" if low != high else "")


def _heading(results: Results) -> str:
    s = results.settings
    openers = "development openers" if s.development else "openers"
    return (
        f"Controlled sentiment: {len(s.openers)} {openers} × {s.seeds} seeds, "
        f"temperature {s.temperature:g}, top_k {s.top_k}, the pair's prompt_template {s.prompt_template!r}\n"
        "Mean [95 % interval, bootstrap over openers]"
    )


def _notes(results: Results) -> str:
    aucs = ", ".join(f"{name} {value:.3f}" for name, value in results.aucs.items())
    return "\n".join(
        [
            f"AUC of the judges on 2,000 test sentences: {aucs}",
            f"Seconds are those of a request among {results.settings.concurrency} at once; "
            f"whole run {results.wall_s / 60:.1f} minutes",
        ]
    )
