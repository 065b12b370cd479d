"""The command `w2s pair train`. Heavy imports happen only when it runs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from server.commands.errors import check_prompt_template, needs_extra, reports_errors, resumable
from w2s_core.data_sets import has_splits
from w2s_core.errors import ConfigurationError
from w2s_core.training.settings import TrainingSettings
from w2s_core.worker.torchao_warnings import silence_torchao

_POSITIVE = click.IntRange(1)
_EPOCHS = 1_000  # the rows of all steps are in memory
_RATE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.option("--base", required=True, help="The model to start from: a folder, a hub id, or demo:NAME.")
@click.option(
    "--data",
    required=True,
    help="Data in TRL's formats: a JSONL or Parquet file, or a data set of the hub. Records have prompt, chosen, "
    "rejected; or prompt, completion (and label); or text (and label).",
)
@click.option("--method", type=click.Choice(["sft", "dpo"]), required=True, help="How the tuned model is trained.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to write; new or empty.")
@click.option("--split", help="The split of a data set.  [default: train]")
@click.option("--check-data", help="Labelled data for the figures, instead of a part of --data.")
@click.option(
    "--held-out", type=click.FloatRange(0, 0.9), help="Share of the prompts to keep for the figures.  [default: 0.1]"
)
@click.option(
    "--prompt-template",
    help="What the pair reads before the answer, with {prompt} replaced.  [default: as the data has it]",
)
@click.option(
    "--lora",
    type=_POSITIVE,
    is_flag=False,
    flag_value=16,
    help="Train LoRA adapters, of this rank (16 if none is given).  [default: all weights]",
)
@click.option(
    "--adapt-epochs",
    type=click.IntRange(0, _EPOCHS),
    help="First train the base on all answers.  [default: 0]",
)
@click.option("--adapt-learning-rate", type=_RATE, help="Its learning rate.  [default: 1e-4, with --lora 1e-3]")
@click.option("--epochs", type=click.IntRange(1, _EPOCHS), help="Times that each answer is trained on.  [default: 3]")
@click.option(
    "--learning-rate", type=_RATE, help="The peak.  [default: sft 1e-4, dpo 5e-6; with --lora ten times that]"
)
@click.option("--batch-size", type=_POSITIVE, help="Answers (dpo: comparisons) a step.  [default: 16]")
@click.option("--max-length", type=_POSITIVE, help="Tokens of prompt and answer.  [default: the base's context]")
@click.option("--beta", type=_RATE, help="DPO's beta: higher stays closer to the reference.  [default: 0.1]")
@click.option("--embedding-dropout", type=click.FloatRange(0, 0.9), help="Dropout on embeddings.  [default: 0]")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    help="The same seed gives the same pair on the same machine.  [default: 0]",
)
@click.option(
    "--saved-dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Data type of the files.  [default: float32]",
)
@click.option("--large", help="The large model of the written configuration.  [default: the demo's]")
@reports_errors
def train(**options: Any) -> None:
    """Train a pair from preference data: a tuned and an untuned model, a model card, and the YAML that serves them.

    Run it again after a stop, and it goes on where it was.
    """
    given = {name: value for name, value in options.items() if value is not None}
    _check_options(given)
    settings = TrainingSettings(**given)
    silence_torchao()
    with needs_extra("train"):
        from w2s_core.training.run import train_pair
    from w2s_core.pairs import report

    with resumable(settings.out):
        found = train_pair(settings)
    if found is not None:
        click.echo(report.summary(found))
    config = shlex.quote(f"{settings.out}/w2s.yaml")
    click.echo(f"wrote {settings.out}; serve it with: w2s serve --config {config}", err=True)


def _check_options(given: Mapping[str, Any]) -> None:
    """Raises ConfigurationError for an option that is no number, or that the others leave without any effect."""
    for option, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigurationError(f"--{option.replace('_', '-')}: must be a number, not {value}.")
    check_prompt_template(given.get("prompt_template"))
    data = [given["data"], *([given["check_data"]] if "check_data" in given else [])]
    useless = {
        "saved_dtype": ("lora" in given, "--lora writes adapters, which stay in float32"),
        "beta": (given["method"] != "dpo", "is for --method dpo"),
        "adapt_learning_rate": (not given.get("adapt_epochs"), "is for --adapt-epochs"),
        "held_out": ("check_data" in given, "--check-data is there for the figures"),
        "split": (not any(map(has_splits, data)), "only a data set has splits, not a file"),
    }
    for option, (has_no_effect, reason) in useless.items():
        if option in given and has_no_effect:
            raise ConfigurationError(f"--{option.replace('_', '-')}: has no effect here: {reason}.")
