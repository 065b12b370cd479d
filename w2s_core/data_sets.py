"""Reads the records of data that people bring: JSON and Parquet files, and data sets of the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_core.config import is_path
from w2s_core.errors import ConfigurationError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_FILES = (".jsonl", ".json", ".parquet")
_NEEDS = "needs the extra `train`. Install it with: pip install 'w2s-server[train]'"

Fields = Mapping[str, Any]


class DataError(ConfigurationError):
    """Data cannot be used. The message names the file, the line and the field."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its fields, its number from 1 on, and its place, which messages name."""

    fields: Fields
    number: int
    place: str


def read_records(source: str | Path, split: str = "train") -> Iterator[Record]:
    """The records of a data set.

    `source` is a `.parquet` file, a file with a JSON object in each line or with one JSON list of them, a folder that
    `datasets` can load, or the id of a data set on the Hugging Face hub; `split` is for the last two. Raises DataError.
    """
    if "://" in str(source):
        raise DataError(f"{source}: is a URL. Download it, and name the file.")
    path = Path(source)
    if has_splits(source):
        records, noun = _data_set(str(source), split), "row"
    elif path.suffix == ".parquet":
        records, noun = _parquet(path), "row"
    else:
        text = _read_text(path)
        listed = text.lstrip().startswith("[")
        records, noun = (_json_list(path, text), "record") if listed else (_json_lines(path, text), "line")
    for number, fields in records:
        place = f"{source}, {noun} {number}"
        if not isinstance(fields, dict):
            raise DataError(f"{place}: is not a JSON object.")
        if not _is_unicode(fields):
            raise DataError(f"{place}: has half of a surrogate pair (\\ud800 to \\udfff), which is no character.")
        yield Record(fields, number, place)


def has_splits(source: str | Path) -> bool:
    """Whether it is a data set in a folder or on the hub, which has splits, and not a file."""
    path, name = Path(source), str(source)
    is_hub_id = _HUB_ID.fullmatch(name) is not None and path.suffix not in _FILES
    return path.is_dir() or (is_hub_id and not path.exists() and not is_path(name))


def _is_unicode(fields: Fields) -> bool:
    """Whether all texts can be written as UTF-8."""
    try:
        json.dumps(fields, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not in UTF-8 (at byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):  # not at U+2028, which JSON may contain
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: is not JSON: {error}.") from None


def _json_list(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    try:
        yield from enumerate(json.loads(text), start=1)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON: {error}.") from None


def _parquet(path: Path) -> Iterator[tuple[int, Fields]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"{path}: a Parquet file {_NEEDS}") from None
    try:
        rows = (row for batch in ParquetFile(path).iter_batches() for row in batch.to_pylist())
        yield from enumerate(map(_without_nulls, rows), start=1)
    except (OSError, ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _data_set(source: str, split: str) -> Iterator[tuple[int, Fields]]:
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise DataError(f"{source}: a data set of the hub {_NEEDS}") from None
    try:
        rows = load_dataset(source, split=split)
    except (OSError, ValueError, DatasetsError) as error:  # the hub's are OSErrors, a missing split's a ValueError
        reason = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
        raise DataError(f"{source}: cannot be loaded as a data set: {' '.join(str(reason).split())}") from None
    yield from enumerate(map(_without_nulls, rows), start=1)


def _without_nulls(row: Fields) -> Fields:
    """The row without its empty columns: a table has each column in every row."""
    return {name: value for name, value in row.items() if value is not None}
