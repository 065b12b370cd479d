"""How a command of the command line ends when something is wrong: one line on stderr and an exit code."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from w2s_core.errors import ConfigurationError, W2SError

P = ParamSpec("P")
R = TypeVar("R")
EXIT_CONFIGURATION = 2
_EXIT_INTERRUPTED = 130  # as of a shell's command that SIGINT ended


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Prints a W2SError or an OSError as one line instead of a traceback.

    Exits with 2 for a ConfigurationError, else with 1.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except W2SError as error:
            click.echo(f"w2s: {error}", err=True)
            code = EXIT_CONFIGURATION if isinstance(error, ConfigurationError) else 1
            raise click.exceptions.Exit(code) from None
        except OSError as error:  # a full disk, or a place that cannot be written
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"w2s: {where}{error.strerror or error}", err=True)
            raise click.exceptions.Exit(1) from None

    return wrapped


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """An ImportError within becomes the ConfigurationError that says which extra of the package to install."""
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(
            f"{error}. This needs the extra `{extra}`. Install it with: pip install 'w2s-server[{extra}]'"
        ) from None


def check_prompt_template(template: str | None) -> None:
    """Raises ConfigurationError for a `--prompt-template` that leaves the prompt out, which nobody means."""
    if template and "{prompt}" not in template:
        raise ConfigurationError("--prompt-template: must contain {prompt}, or be empty for nothing.")


def run_resumable(work: Coroutine[Any, Any, R], out: Path) -> R:
    """Runs what keeps its progress in `out`, as `resumable`."""
    with resumable(out):
        return asyncio.run(work)


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Ctrl-C ends the work within, whose progress is kept in `out`, with 130 and a line on how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        kept = out.is_dir() and any(out.iterdir())
        how = f" What is done is in {out}; the same command goes on from there." if kept else ""
        click.echo(f"\nStopped.{how}", err=True)
        raise click.exceptions.Exit(_EXIT_INTERRUPTED) from None
