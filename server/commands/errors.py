"""How a command of the command line ends when something is wrong: one line on stderr and an exit code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import click

from w2s_core.errors import ConfigurationError, W2SError

P = ParamSpec("P")
EXIT_CONFIGURATION = 2


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Prints a W2SError as one line instead of a traceback, and exits with 2 for a ConfigurationError, else with 1."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except W2SError as error:
            click.echo(f"w2s: {error}", err=True)
            code = EXIT_CONFIGURATION if isinstance(error, ConfigurationError) else 1
            raise click.exceptions.Exit(code) from None

    return wrapped
