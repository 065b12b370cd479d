"""The command `w2s eval run` within the tests' process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from server.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["eval", "run", *map(str, arguments)])
