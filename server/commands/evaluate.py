"""The commands `w2s eval …`: experiments that measure guidance. Heavy imports happen only when one runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from server.commands.errors import needs_extra, reports_errors, run_resumable
from server.commands.eval_sentiment import sentiment
from server.settings.config import load_settings
from w2s_core.config import WorkersConfig
from w2s_core.errors import ConfigurationError

if TYPE_CHECKING:
    import httpx

    from w2s_core.evaluation.run import Judging

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(name="eval")
def eval_commands() -> None:
    """Evaluate guidance: run an experiment and report its results."""


eval_commands.add_command(sentiment)


@eval_commands.command(name="run")
@click.argument("experiment", type=_FILE, required=False)
@click.option(
    "--prompts", help="Prompts: a file of JSONL, AlpacaEval's, MT-Bench's or Parquet; or a data set of the hub."
)
@click.option("--split", help="The split of a data set.  [default: train]")
@click.option("--model", "models", multiple=True, help="A served model, which becomes a condition. Repeatable.")
@click.option(
    "--guidance",
    multiple=True,
    metavar="KEY=VALUE[,VALUE...]",
    help="Guidance of every --model but the first, or of the file's conditions that have any. Several values make a "
    "grid. Repeatable.",
)
@click.option("--max-tokens", type=click.IntRange(1), help="Maximum tokens per answer.")
@click.option("--seeds", type=click.IntRange(1), help="Answers per prompt.  [default: 1]")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many prompts.")
@click.option("--concurrency", type=click.IntRange(1), help="Concurrent requests.  [default: 4]")
@click.option("--baseline", help="The condition that others are compared with.  [default: the first]")
@click.option("--url", help="A running server, such as http://localhost:8000.  [default: one in this process]")
@click.option("--api-key-env", metavar="VARIABLE", help="The environment variable with the server's API key.")
@click.option("--config", type=_FILE, help="Configuration of the server in this process.  [default: the demo models]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the answers.")
@reports_errors
def run_command(*, out: Path, concurrency: int | None, as_json: bool, **options: Any) -> None:
    """Ask your prompts under several conditions, and compare the answers and what they cost.

    EXPERIMENT is a YAML file with the prompts, conditions and judges, or one of the paper's tasks, `summarization` and
    `instructions`; flags override it. The same command goes on where a stopped one left off, and asks nothing twice.
    """
    from server.commands.experiment_file import guidance_flags, load_file, make_experiment, preset_needs
    from w2s_core.evaluation.client import NotServedError
    from w2s_core.evaluation.run import run

    server, setup, workers = _server(options["url"], options["api_key_env"], options["config"])
    flags = {key: options[key] for key in ("prompts", "split", "limit", "seeds", "baseline")}
    file = load_file(options["experiment"], flags | {"concurrency": concurrency})
    guidance = guidance_flags(options["guidance"])
    experiment = make_experiment(file, options["models"], guidance, options["max_tokens"], setup)
    judging = _judging(experiment.judges, file.concurrency, workers)
    try:
        results = run_resumable(run(experiment, out, server, file.concurrency, judging), out)
    except NotServedError as error:
        raise ConfigurationError(f"{error}{preset_needs(options['experiment'], experiment)}") from None
    click.echo(json.dumps(results.as_json(), ensure_ascii=False, indent=1) if as_json else results.as_text())
    click.echo(f"wrote {out}/report.html, results.json and alpaca_eval/", err=True)


def _judging(judges: Mapping[str, Mapping[str, Any]], concurrency: int, workers: WorkersConfig) -> Judging:
    """The judges of the experiment; `workers` run local ones. Raises ConfigurationError, before anything is asked."""
    from server.commands.judge_sections import judge_configs
    from w2s_core.judges.build import make_judge
    from w2s_core.judges.run import judging

    made = [make_judge(name, config, workers) for name, config in judge_configs(judges).items()]
    with needs_extra("eval"):
        if made and (missing := [name for name in ("matplotlib", "sklearn") if find_spec(name) is None]):
            raise ImportError(f"Judges need {' and '.join(missing)}")
    return judging(made, concurrency)


def _server(
    url: str | None, key_variable: str | None, config: Path | None
) -> tuple[AbstractAsyncContextManager[Any], Mapping[str, Any], WorkersConfig]:
    """The running server at `url`, or one in this process that serves the configuration.

    With it, what is known of the models that it serves (for `Experiment.setup`), and the workers of local judges.
    """
    if url is None:
        if key_variable is not None:
            raise ConfigurationError("--api-key-env: is for a running server, which --url names.")
        from server.commands.in_process import in_process

        settings = load_settings(config)
        return in_process(settings.engine_config()), settings.deciding, settings.workers
    if config is not None:
        raise ConfigurationError("--config: is for a server in this process; --url names a running one.")
    return _client(url, key_variable), {}, WorkersConfig()


def _client(url: str, key_variable: str | None) -> httpx.AsyncClient:
    import httpx

    from w2s_core.remote.http_client import read_api_key

    api_key = read_api_key(key_variable, "--api-key-env")
    headers = {"authorization": f"Bearer {api_key}"} if api_key is not None else {}
    timeout, limits = httpx.Timeout(None, connect=10), httpx.Limits(max_connections=None)
    try:
        base = httpx.URL(url.rstrip("/").removesuffix("/v1"))
        if base.scheme not in ("http", "https"):
            raise ConfigurationError("--url: must begin with http:// or https://.")
        if base.userinfo:
            raise ConfigurationError("--url: must not contain a user name or password; use --api-key-env.")
        return httpx.AsyncClient(base_url=base, headers=headers, timeout=timeout, limits=limits)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"--url: {error}") from None
