"""The `w2s` command line: `serve`, `eval`, `pair`, `trace` and `models`. Errors and messages go to stderr."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click

from server.commands.errors import reports_errors
from server.commands.evaluate import eval_commands
from server.commands.pair import pair_commands
from server.commands.trace import trace
from server.settings.config import ServerConfig, load_settings
from server.settings.environment import CONFIG_FILE

_DEFAULTS = ServerConfig()
SERVER_FLAGS = ("host", "port", "tls_certificate", "tls_key", "log_level", "log_format")


@click.group()
@click.version_option(package_name="w2s-server")
def main() -> None:
    """An OpenAI-compatible server for weak-to-strong search."""


@main.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar=CONFIG_FILE,
    help="Configuration file (YAML). Without one, the demo models are served.",
)
@click.option("--host", help=f"Address to listen on. [default: {_DEFAULTS.host}]")
@click.option("--port", type=int, help=f"Port to listen on; 0 picks a free one. [default: {_DEFAULTS.port}]")
@click.option("--tls-certificate", help="PEM file with the certificate chain. The server then speaks HTTPS.")
@click.option("--tls-key", help="PEM file with the private key, if the certificate file does not contain it.")
@click.option(
    "--device",
    "--devices",
    "devices",
    multiple=True,
    help="Device to run models on: cpu, cuda:0, cuda:0+cuda:1, … or auto. Repeat it for several devices.",
)
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help="Data type of the weights."
)
@click.option(
    "--quantization", type=click.Choice(["none", "int8"]), help="int8 multiplies 8-bit integers, on CPUs only."
)
@click.option("--threads", help="CPU threads per worker, or auto.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least severe level to log."
)
@click.option(
    "--log-format", type=click.Choice(["human", "json"]), help="Lines for people, or one JSON object per line."
)
@reports_errors
def serve(config: Path | None, **options: Any) -> None:
    """Serve models over HTTP.

    Each setting is taken from the first of these that has it: flags, W2S_* environment variables, the configuration
    file, the defaults.
    """
    load = functools.partial(load_settings, config, nest_flags(options))
    settings = load()
    from server.serve import run  # imported late, so that a mistake in the configuration is reported at once
    from w2s_core.build.model_sources import check_references

    check_references(settings.engine_config())
    raise click.exceptions.Exit(run(settings, load))


def nest_flags(options: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, nested like the configuration file."""
    sections: dict[str, dict[str, Any]] = {
        "server": {key: options[key] for key in SERVER_FLAGS},
        "workers": {key: options[key] for key in ("dtype", "quantization", "threads")},
    }
    devices = options["devices"]
    sections["workers"]["devices"] = None if not devices else "auto" if devices == ("auto",) else devices
    given = {name: {k: v for k, v in section.items() if v is not None} for name, section in sections.items()}
    return {name: section for name, section in given.items() if section}


main.add_command(eval_commands)
main.add_command(pair_commands)
main.add_command(trace)


@main.group()
def models() -> None:
    """List and download the demo models."""


@models.command(name="fetch")
@click.argument("name")
@reports_errors
def fetch(name: str) -> None:
    """Download and convert the demo model NAME, if needed, and print its folder.

    `w2s serve` does this by itself when it needs the model.
    """
    from w2s_core.demo.models import PREFIX, resolve

    click.echo(resolve(PREFIX + name.removeprefix(PREFIX)))


@models.command(name="list")
def list_names() -> None:
    """Print the names of the demo models."""
    from w2s_core.demo.models import KNOWN

    for name in KNOWN:
        click.echo(name)
