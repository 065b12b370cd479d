"""Durable files: replaces a file as a whole, and appends to a log that a killed process may have left unfinished."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO


def replace_file(path: Path, text: str) -> None:
    """Writes a file, as UTF-8, so that at any time it has either its old content or all of the new one.

    That holds when the process is killed, not when the machine is. Where `path` is a link, what it names is written,
    and a file keeps its permissions. Raises OSError, and leaves nothing unfinished then.
    """
    path = Path(os.path.realpath(path))
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        unfinished.write_text(text, encoding="utf-8")
        if path.exists():
            shutil.copymode(path, unfinished)
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


def open_log(path: Path) -> IO[bytes]:
    """Opens a log of JSON lines for appending, without a last line that a killed run left unfinished."""
    file = path.open("a+b")
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    try:
        json.loads(content[whole:])
    except ValueError:
        file.truncate(whole)
    else:
        file.write(b"\n")  # whole, but for the end that an editor has left out
    return file
