"""Files of settings, and what is wrong with them in one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from server.settings.environment import name_of
from w2s_core.errors import ConfigurationError


def read_yaml(path: Path, such_as: str) -> dict[str, Any]:
    """A file's mapping, empty where the file is. Raises ConfigurationError; never quotes what stands in the file, which
    may be a secret. `such_as`: what a key may look like, for the message."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: cannot be read: not UTF-8 at byte {error.start}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: is not YAML: {_reason(error)}") from None
    if content is None:  # an empty file, or only comments
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigurationError(f"{path}: must be a mapping of keys such as `{such_as}`")
    return content


def _reason(error: yaml.YAMLError) -> str:
    """What and where; the parser would also quote the line."""
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or "it holds a character that no YAML has"
    return f"{what} in line {mark.line + 1}, column {mark.column + 1}" if mark else what


def explain(error: ValidationError, at: str = "") -> str:
    """One line that names every key at fault, and never a value: a value may be a secret. `at`: where they are."""
    problems: dict[str, list[str]] = {}
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        key, message = at + _key(item["loc"]), item["msg"].removeprefix("Value error, ")
        if item["type"] == "backend":
            key += ".backend"
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            variable = name_of(key)
            key, message = f"{key} (from {variable})" if variable in os.environ else key, "unknown key"
        problems.setdefault(key, []).append(message)
    return "; ".join(f"{key}: {' or '.join(found)}".removeprefix(": ") for key, found in problems.items())


def _key(loc: tuple[int | str, ...]) -> str:
    """The dotted path, without pydantic's labels for the members of a union at its end (`literal['auto']`, `int`)."""
    parts = [str(part) for part in loc]
    if (
        parts[:1] and parts[0] in ("large_models", "pairs") and len(parts) > 2
    ):  # behind the name stands the backend, a label too
        del parts[2]
    if len(parts) > 1 and ("[" in parts[-1] or parts[-1] in ("int", "float", "str")):
        parts.pop()
    return ".".join(parts)
