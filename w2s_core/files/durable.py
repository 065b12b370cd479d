"""Durable files: replaces a file as a whole, and appends to a log that a killed process may have left unfinished."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO


def replace_file(path: Path, text: str) -> None:
    """Writes a file, as UTF-8, so that at any time it has either its old content or all of the new one.

    Where `path` is a link, what it names is written. Raises OSError, and leaves nothing unfinished then.
    """
    path = Path(os.path.realpath(path))
    unfinished = path.with_name(f"{path.name}.new")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


def open_log(path: Path) -> IO[bytes]:
    """Opens a log for appending, without the line that a killed run left unfinished."""
    file = path.open("a+b")
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    return file
