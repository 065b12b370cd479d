"""The command `w2s eval sentiment`. Heavy imports happen only when it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from server.commands.errors import check_prompt_template, needs_extra, reports_errors, run_resumable
from w2s_core.evaluation.prompts import OPENERS
from w2s_core.evaluation.settings import Settings

if TYPE_CHECKING:
    from w2s_core.evaluation.results import Results

_F = TypeVar("_F", bound=Callable[..., Any])
_DEFAULTS = Settings()


def _positive(name: str, text: str, most: int | None = None) -> Callable[[_F], _F]:
    option = name.lstrip("-").replace("-", "_")
    default = getattr(_DEFAULTS, option)
    return click.option(name, type=click.IntRange(1, most), default=default, show_default=True, help=text)


@click.command()
@_positive("--prompts", "Number of openers (prompts).", most=len(OPENERS))
@_positive("--seeds", "Answers per opener.")
@_positive("--ablation-seeds", "Answers per opener in the ablation, at most --seeds.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    multiple=True,
    default=_DEFAULTS.max_tokens,
    show_default=True,
    help="Maximum tokens per answer. Give it several times to compare lengths.",
)
@_positive("--concurrency", "Concurrent requests.")
@click.option("--temperature", type=click.FloatRange(min=0), default=_DEFAULTS.temperature, show_default=True)
@click.option("--top-k", type=click.IntRange(min=0), default=_DEFAULTS.top_k, show_default=True)
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
)
@click.option(
    "--prompt-template",
    default=_DEFAULTS.prompt_template,
    help="What the pair reads before the answer.  [default: the demo's]",
)
@click.option("--large-at", nargs=2, metavar="URL NAME", help="Use the large model NAME of the completion API at URL.")
@click.option("--development", is_flag=True, help="Use the development openers instead of the evaluation ones.")
@click.option(
    "--ablation/--no-ablation",
    default=True,
    show_default=True,
    help="Also compare W×K shapes at equal cost, at the first length.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("out/sentiment"), show_default=True
)
@reports_errors
def sentiment(out: Path, ablation: bool, **options: Any) -> None:
    """Run the paper's controlled-sentiment experiment in miniature; write tables, JSON and a chart to --out."""
    check_prompt_template(options["prompt_template"])
    options["ablation_seeds"] = min(options["ablation_seeds"], options["seeds"]) if ablation else 0
    with needs_extra("eval"):
        from server.commands.in_process import in_process
        from w2s_core.evaluation.sentiment import run

        results = run_resumable(run(Settings(**options), out, in_process), out)
    publish(results, out)


def publish(results: Results, out: Path) -> None:
    """Prints the report on stdout and writes sentiment.txt, .md (tables for a README), .json and .png into `out`."""
    from w2s_core.evaluation.chart import draw
    from w2s_core.evaluation.report import markdown_tables, report
    from w2s_core.evaluation.results import as_json

    out.mkdir(parents=True, exist_ok=True)
    text = report(results)
    click.echo(text)
    (out / "sentiment.txt").write_text(text + "\n", encoding="utf-8")
    (out / "sentiment.md").write_text(markdown_tables(results) + "\n", encoding="utf-8")
    content = json.dumps(as_json(results), ensure_ascii=False, indent=1)
    (out / "sentiment.json").write_text(content + "\n", encoding="utf-8")
    draw(results, out / "sentiment.png")
    click.echo(f"wrote {out}/sentiment.txt, .md, .json and .png", err=True)
