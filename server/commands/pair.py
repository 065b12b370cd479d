"""The commands `w2s pair …`: tools for pairs. Heavy imports happen only when one runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click

from server.commands.errors import reports_errors
from server.settings.config import load_settings
from w2s_core.config import PairConfig, RemotePairConfig, WorkersConfig
from w2s_core.errors import ConfigurationError

_MODEL = "A folder, a hub id, or demo:NAME."


@click.group(name="pair")
def pair_commands() -> None:
    """Tools for pairs of models."""


@pair_commands.command()
@click.option("--tuned", help=f"The tuned model. {_MODEL}")
@click.option("--untuned", help=f"The untuned model; leave it out for an autoregressive reward model. {_MODEL}")
@click.option("--pair", "name", help="A pair of the configuration, instead of --tuned and --untuned.")
@click.option("--config", type=click.Path(path_type=Path), help="The configuration that --pair is in.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Preference data in TRL's formats, JSONL: prompt, chosen, rejected; or prompt, completion, label.",
)
@click.option(
    "--prompt-template",
    help="What the pair reads before the answer, with {prompt} replaced; empty for nothing.  [default: its chat "
    "template]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a plot (PNG) to this file.")
@reports_errors
def check(*, data: Path, as_json: bool, plot: Path | None, **options: str | Path | None) -> None:
    """Tell whether a pair is any good, before it is served.

    It counts how often the answer that people chose scores higher, how early in the answer the pair knows, and whether
    it likes more than length.
    """
    name, pair, workers = _chosen_pair(**options)  # type: ignore[arg-type]
    from w2s_core.pairs import report
    from w2s_core.pairs.run import run_check

    found = asyncio.run(run_check(name, pair, data, workers))
    click.echo(json.dumps(report.as_json(found), indent=1) if as_json else report.summary(found))
    if plot is not None:
        try:
            report.draw(found, plot)
        except ImportError as error:
            raise click.ClickException(f"{error}. Install it with: pip install 'w2s-server[eval]'") from None


def _chosen_pair(
    *, name: str | None, config: Path | None, tuned: str | None, untuned: str | None, prompt_template: str | None
) -> tuple[str, PairConfig | RemotePairConfig, WorkersConfig]:
    """The pair that the flags mean, its name in messages, and the workers that run it."""
    if (name is None) == (tuned is None):
        raise ConfigurationError("name a pair by --tuned and --untuned, or one of the configuration by --pair.")
    if tuned is not None:
        return "pair", PairConfig(tuned, untuned, prompt_template=prompt_template), WorkersConfig()
    settings = load_settings(config)
    if name not in settings.pairs:
        names = ", ".join(settings.pairs) or "none"
        raise ConfigurationError(f"--pair: no pair is named `{name}` (configured: {names}).")
    return str(name), settings.pairs[name], settings.workers
