"""The environment as a source of settings: `W2S_SERVER__PORT=9000` is `server: {port: 9000}`.

Lists and mappings are written as JSON (`W2S_WORKERS__DEVICES='["cuda:0"]'`), null as `null`, everything else as it is.
A name all in capitals is lower-cased; one that is not keeps its letters, so that `W2S_LARGE_MODELS__Llama__MODEL`
reaches the model called `Llama`.

pydantic-settings' own reader is not used: it drops unknown names without a word, and it cannot see into the
dataclasses of `w2s_core.config`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from w2s_core.errors import ConfigurationError

PREFIX = "W2S_"
DELIMITER = "__"
CONFIG_FILE = "W2S_CONFIG"  # where the file is: not a key of the file itself
_NOT_KEYS = frozenset({CONFIG_FILE})


class EnvironmentSource(PydanticBaseSettingsSource):
    """Every `W2S_` variable, known or not: the settings' own validation then refuses the unknown ones."""

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str] | None = None) -> None:
        super().__init__(settings_cls)
        self._environ = os.environ if environ is None else environ

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # the base class wants it; `__call__` reads all fields at once

    def __call__(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name in sorted(self._environ, key=lambda name: name.count(DELIMITER)):  # whole sections before their keys
            if name.startswith(PREFIX) and name not in _NOT_KEYS:
                _put(values, path_of(name), _decode(self._environ[name]), name)
        return values


def path_of(name: str) -> list[str]:
    """The keys that a variable's name leads through."""
    segments = name.removeprefix(PREFIX).split(DELIMITER)
    return [segment.lower() if segment.isupper() else segment for segment in segments]


def name_of(path: str) -> str:
    """The variable's name for a dotted path of keys."""
    return PREFIX + path.replace(".", DELIMITER).upper()


def _decode(raw: str) -> Any:
    """JSON only where it must be, so that a template such as `{prompt}` or a key of digits stays text."""
    if raw == "null" or raw.startswith(("[", "{")):
        try:
            return json.loads(raw)
        except ValueError:
            return raw
    return raw


def _put(values: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    for key in path[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigurationError(f"{name}: `{key}` is also set as a whole, and not to a mapping")
    values[path[-1]] = value
