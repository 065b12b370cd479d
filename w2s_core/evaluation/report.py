"""Formats results as tables: aligned text for a terminal, Markdown for a README."""

from __future__ import annotations

from collections.abc import Sequence

from w2s_core.evaluation.metrics import METRICS, Estimate
from w2s_core.evaluation.results import Results
from w2s_core.evaluation.scoring import Summary
from w2s_core.evaluation.settings import BASE, BEST_OF, CBS

Rows = Sequence[Sequence[str]]


def report(results: Results) -> str:
    """The tables with a heading, the differences between methods and the judges' AUC."""
    parts = [_heading(results), table(summary_rows(results.main))]
    if results.ablation:
        parts += [
            f"Beam width × successors at equal cost, chunks of 5 tokens, {results.settings.ablation_seeds} seed(s):",
            table(summary_rows(results.ablation)),
        ]
    return "\n\n".join([*parts, _notes(results)])


def markdown_tables(results: Results) -> str:
    """The same tables in Markdown."""
    return "\n\n".join(markdown(summary_rows(rows)) for rows in (results.main, results.ablation) if rows)


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


def summary_rows(summaries: Sequence[Summary]) -> list[list[str]]:
    """Table rows: one metric per row, one condition per column, cells `mean [low, high]`."""
    rows = [["", *(s.condition for s in summaries)]]
    for metric in METRICS:
        rows.append([metric.label, *(interval(s.estimates[metric.key], metric.digits) for s in summaries)])
    rows.append(["distinct-2 over all answers", *(_number(s.corpus_distinct2, 3) for s in summaries)])
    return rows


def interval(estimate: Estimate | None, digits: int) -> str:
    """An estimate as `0.53 [0.49, 0.57]`, or a dash if there is none."""
    if estimate is None:
        return "–"
    low, high = _number(estimate.low, digits), _number(estimate.high, digits)
    return _number(estimate.mean, digits) + (f" [{low}, {high}]" if low != high else "")


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _heading(results: Results) -> str:
    s = results.settings
    openers = "development openers" if s.development else "openers"
    return (
        f"Controlled sentiment: {len(s.openers)} {openers} × {s.seeds} seeds, {s.max_tokens} tokens, "
        f"temperature {s.temperature:g}, top_k {s.top_k}, the pair's prompt_template {s.prompt_template!r}\n"
        "Mean [95 % interval, bootstrap over prompts]"
    )


def _notes(results: Results) -> str:
    base, best, cbs = (results.judged(name) for name in (BASE, BEST_OF, CBS))
    ordered = cbs.mean > best.mean > base.mean
    apart = not cbs.overlaps(base)
    aucs = ", ".join(f"{name} {value:.3f}" for name, value in results.aucs.items())
    width = max(map(len, results.differences))
    lines = [f"{name:{width}}  {_signed(estimate)}" for name, estimate in results.differences.items()]
    return "\n".join(
        [
            "Paired by prompt:",
            *lines,
            f"On the judge, {CBS} > {BEST_OF} > {BASE}: {_yes(ordered)}; "
            f"intervals of {CBS} and {BASE} do not overlap: {_yes(apart)}",
            f"AUC of the judges on 2,000 test sentences: {aucs}",
            f"Seconds are those of a request among {results.settings.concurrency} at once; "
            f"whole run {results.wall_s / 60:.1f} minutes",
        ]
    )


def _signed(estimate: Estimate) -> str:
    return f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _yes(fact: bool) -> str:
    return "yes" if fact else "NO"
