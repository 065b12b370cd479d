"""Settings from environment variables: `W2S_SERVER__PORT=9000` sets `server: {port: 9000}`.

Lists and mappings are written as JSON (`W2S_WORKERS__DEVICES='["cuda:0"]'`), null as `null`, everything else as plain
text. Names in capitals are lower-cased; a part that is not all in capitals stays as it is, so that
`W2S_LARGE_MODELS__Llama__MODEL` reaches the model called `Llama`.

pydantic-settings' own environment source is not used: it ignores unknown names silently, and it cannot read the
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
CONFIG_FILE = "W2S_CONFIG"  # the path of the configuration file, not a key in it
_NOT_KEYS = frozenset({CONFIG_FILE})


class EnvironmentSource(PydanticBaseSettingsSource):
    """A pydantic-settings source of all `W2S_` variables. Validation of the settings then rejects unknown ones."""

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str] | None = None) -> None:
        super().__init__(settings_cls)
        self._environ = os.environ if environ is None else environ

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # abstract in the base class; `__call__` reads all fields at once

    def __call__(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name in sorted(self._environ, key=lambda name: name.count(DELIMITER)):  # sections before the keys in them
            if name.startswith(PREFIX) and name not in _NOT_KEYS:
                _set_nested(values, key_path(name), _decode(self._environ[name]), name)
        return values


def key_path(name: str) -> list[str]:
    """The keys that a variable's name stands for: `W2S_SERVER__PORT` is `["server", "port"]`."""
    segments = name.removeprefix(PREFIX).split(DELIMITER)
    return [segment.lower() if segment.isupper() else segment for segment in segments]


def variable_name(path: str) -> str:
    """The variable's name for a dotted key: `server.port` is `W2S_SERVER__PORT`."""
    return PREFIX + path.replace(".", DELIMITER).upper()


def _decode(raw: str) -> Any:
    """Parses JSON lists, objects and null; everything else stays text, such as `{prompt}` or a key made of digits."""
    if raw == "null" or raw.startswith(("[", "{")):
        try:
            return json.loads(raw)
        except ValueError:
            return raw
    return raw


def _set_nested(values: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    for key in path[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigurationError(f"{name}: another variable sets `{key}` to a value that is not a mapping")
    values[path[-1]] = value
