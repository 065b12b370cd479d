"""Reads JSON Lines: data that people bring, with errors that name the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from w2s_core.errors import ConfigurationError


class DataError(ConfigurationError):
    """Data cannot be used. The message names the file, the line and the field."""


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises DataError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the number of each line that is not blank, from 1 on, and the object in it. Raises DataError."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # not at U+2028, which JSON may contain
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: is not JSON: {error}.") from None
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: is not a JSON object.")
            yield number, record
