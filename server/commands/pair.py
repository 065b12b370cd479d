"""The commands `w2s pair …`: tools for pairs."""

from __future__ import annotations

import click

from server.commands.pair_check import check
from server.commands.pair_train import train


@click.group(name="pair")
def pair_commands() -> None:
    """Train and check pairs of models."""


pair_commands.add_command(train)
pair_commands.add_command(check)
