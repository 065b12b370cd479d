"""The command `w2s pair check`. Heavy imports happen only when it runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click

from server.commands.errors import check_prompt_template, needs_extra, reports_errors
from server.settings.config import load_settings
from w2s_core.config import PairConfig, RemotePairConfig, WorkersConfig
from w2s_core.data_sets import has_splits
from w2s_core.errors import ConfigurationError

_MODEL = "A folder, a hub id, or demo:NAME."


@click.command()
@click.option("--tuned", help=f"The tuned model. {_MODEL}")
@click.option("--untuned", help=f"The untuned model; leave it out for an autoregressive reward model. {_MODEL}")
@click.option("--pair", "name", help="A pair of the configuration, instead of --tuned and --untuned.")
@click.option("--config", type=click.Path(path_type=Path), help="The configuration that --pair is in.")
@click.option(
    "--data",
    required=True,
    help="Preference data in TRL's formats: a JSONL or Parquet file, or a data set of the hub. Records have prompt, "
    "chosen, rejected; or prompt, completion, label; or text, label.",
)
@click.option("--split", help="The split of a data set.  [default: train]")
@click.option(
    "--prompt-template",
    help="What the pair reads before the answer, with {prompt} replaced; empty for nothing.  [default: its chat "
    "template]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a plot (PNG) to this file.")
@reports_errors
def check(
    *,
    data: str,
    split: str | None,
    as_json: bool,
    plot: Path | None,
    tuned: str | None,
    untuned: str | None,
    prompt_template: str | None,
    name: str | None,
    config: Path | None,
) -> None:
    """Tell whether a pair is any good, before it is served.

    It counts how often the answer that people chose scores higher, how early in the answer the pair knows, and whether
    it likes more than length.
    """
    check_prompt_template(prompt_template)
    if plot is not None and not plot.parent.is_dir():
        raise ConfigurationError(f"--plot: no such folder: {plot.parent}.")
    if split is not None and not has_splits(data):
        raise ConfigurationError("--split: only a data set has splits, not a file.")
    if name is not None:
        if (tuned, untuned, prompt_template) != (None, None, None):
            raise ConfigurationError("--pair: is configured; leave out --tuned, --untuned and --prompt-template.")
        pair, workers = _configured_pair(name, config)
    elif config is not None and tuned is not None:
        raise ConfigurationError("--config: is only for a pair that --pair names.")
    else:
        pair, workers = _pair(tuned, untuned, prompt_template), WorkersConfig()
    from w2s_core.pairs import report
    from w2s_core.pairs.preferences import read_preferences
    from w2s_core.pairs.run import check_pair

    found = asyncio.run(check_pair(name or "pair", pair, read_preferences(data, split or "train"), workers))
    click.echo(json.dumps(report.as_json(found), indent=1) if as_json else report.summary(found))
    if plot is not None:
        with needs_extra("eval"):
            report.draw(found, plot)


def _pair(tuned: str | None, untuned: str | None, prompt_template: str | None) -> PairConfig:
    """The pair of these models. Raises ConfigurationError where none are named, or one's folder is not there."""
    if tuned is None:
        raise ConfigurationError("name a pair by --tuned and --untuned, or one of the configuration by --pair.")
    from w2s_core.build.model_sources import check_reference

    check_reference(tuned, "--tuned")
    if untuned is not None:
        check_reference(untuned, "--untuned")
    return PairConfig(tuned, untuned, prompt_template=prompt_template)


def _configured_pair(name: str, config: Path | None) -> tuple[PairConfig | RemotePairConfig, WorkersConfig]:
    """A pair of the configuration, and the workers that run it."""
    settings = load_settings(config)
    if name not in settings.pairs:
        names = ", ".join(settings.pairs) or "none"
        raise ConfigurationError(f"--pair: no pair is named `{name}` (configured: {names}).")
    return settings.pairs[name], settings.workers
