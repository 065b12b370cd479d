"""`w2s`: serve, eval, models. Everything for people goes to stderr."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

import click

from server.settings.config import load_settings
from server.settings.environment import CONFIG_FILE
from w2s_core.errors import ConfigurationError, W2SError
from w2s_core.evaluation.cli import sentiment

P = ParamSpec("P")
EXIT_CONFIGURATION = 2
SERVER_FLAGS = ("host", "port", "tls_certificate", "tls_key", "log_level", "log_format")


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """One clear line instead of a trace: exit code 2 for the operator's mistakes, 1 for other failures."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except W2SError as error:
            click.echo(f"w2s: {error}", err=True)
            code = EXIT_CONFIGURATION if isinstance(error, ConfigurationError) else 1
            raise click.exceptions.Exit(code) from None

    return wrapped


@click.group()
@click.version_option(package_name="w2s-server")
def main() -> None:
    """An OpenAI-compatible server for weak-to-strong search."""


@main.command()
@click.option("--config", type=click.Path(path_type=Path), envvar=CONFIG_FILE, help="YAML file; default: the demo.")
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port; 0 takes a free one.")
@click.option("--tls-certificate", help="PEM file; with it the server speaks HTTPS.")
@click.option("--tls-key", help="PEM file, where the certificate's does not hold the key as well.")
@click.option("--device", "--devices", "devices", multiple=True, help="For example cpu or cuda:0; may be repeated.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]))
@click.option("--threads", help="CPU threads of a worker, or auto.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-format", type=click.Choice(["human", "json"]))
@reports_errors
def serve(config: Path | None, **options: Any) -> None:
    """Serve models. Settings come from flags, then W2S_* variables, then the file, then the demo's defaults."""
    again = functools.partial(load_settings, config, flags_of(options))
    settings = again()
    from server.serve import run  # only now: a mistake in the configuration is answered at once

    raise click.exceptions.Exit(run(settings, again))


def flags_of(options: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, nested as in the file."""
    sections: dict[str, dict[str, Any]] = {
        "server": {key: options[key] for key in SERVER_FLAGS},
        "workers": {key: options[key] for key in ("dtype", "threads")},
    }
    devices = options["devices"]
    sections["workers"]["devices"] = None if not devices else "auto" if devices == ("auto",) else devices
    given = {name: {k: v for k, v in section.items() if v is not None} for name, section in sections.items()}
    return {name: section for name, section in given.items() if section}


@main.group(name="eval")
def evaluation() -> None:
    """Measure what guidance does."""


evaluation.add_command(sentiment)


@main.group()
def models() -> None:
    """The demo's models."""


@models.command(name="fetch")
@click.argument("name")
@reports_errors
def fetch(name: str) -> None:
    """Provide demo model NAME now (`serve` does it by itself) and print its folder."""
    from w2s_core.demo.models import PREFIX, resolve

    click.echo(resolve(PREFIX + name.removeprefix(PREFIX)))


@models.command(name="list")
def list_names() -> None:
    """Print the names of the demo's models."""
    from w2s_core.demo.models import KNOWN

    for name in KNOWN:
        click.echo(name)
