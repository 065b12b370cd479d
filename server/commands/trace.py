"""The command `w2s trace`: draws a saved search tree."""

from __future__ import annotations

from pathlib import Path

import click

from server.commands.errors import reports_errors
from w2s_core.errors import ConfigurationError
from w2s_core.files.durable import replace_file


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The SVG file to write.")
@click.option("--prompt", default=0, show_default=True, help="The number of the prompt, where there were several.")
@click.option("--title", help="The title.  [default: the name of the file]")
@reports_errors
def trace(file: Path, out: Path, prompt: int, title: str | None) -> None:
    """Draw the search tree in FILE.

    FILE is a response to a request with `"guidance": {"trace": true}`, or a saved stream with `"trace": "stream"`.
    """
    from server.commands.trace_drawing import draw_search
    from server.commands.trace_file import read_search

    search = read_search(file, prompt)
    drawing = draw_search(search, title if title is not None else file.name)
    if out.exists() and not out.is_file():
        raise ConfigurationError(f"--out {out}: is a directory or no plain file")
    if out.exists() and out.samefile(file):
        raise ConfigurationError(f"--out {out}: is the file to read")
    try:
        replace_file(out, drawing)
    except OSError as error:
        raise ConfigurationError(f"--out {out}: cannot be written: {error.strerror}") from None
    if search.cut:
        click.echo(f"w2s: {file}: is cut; drawn are the {len(search.rounds)} chunks that are whole.", err=True)
