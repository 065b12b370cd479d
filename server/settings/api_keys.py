"""API keys in the settings and in a key file: their schema, and how a file of them is read."""

from __future__ import annotations

import hashlib
import logging
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from server.settings.files import explain, read_yaml
from w2s_core.errors import ConfigurationError

logger = logging.getLogger(__name__)

_SENDABLE = re.compile(r"[!-~]+", re.ASCII)  # what fits a header as it is


def _can_be_sent(key: SecretStr) -> SecretStr:
    if not _SENDABLE.fullmatch(key.get_secret_value()):
        raise ValueError("must be printable ASCII without blanks, and not empty")
    return key


class KeyConfig(BaseModel):
    """A key, or its SHA-256 in hexadecimal, and what its holder may use at each replica."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: Annotated[SecretStr, AfterValidator(_can_be_sent)] | None = None
    key_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    max_concurrent_requests: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.key is None) == (self.key_sha256 is None):
            raise ValueError("needs one of `key` and `key_sha256`")
        return self

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.key_sha256) if self.key_sha256 else key_digest(self.key.get_secret_value())  # type: ignore[union-attr]


def _named(value: Any) -> Any:
    """Keys without names, in a list or separated by commas, get numbers; a bare key stands for `{key: …}`."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, list | tuple):
        value = {f"key-{number}": key for number, key in enumerate(value, start=1)}
    if not isinstance(value, Mapping):
        return value
    return {name: key if isinstance(key, Mapping | KeyConfig) else {"key": key} for name, key in value.items()}


KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]


KeyConfigs = Annotated[dict[KeyName, KeyConfig], BeforeValidator(_named)]


def read_keys(path: Path) -> dict[str, KeyConfig]:
    where = f"server.api_keys_file: {path}"
    try:
        content = read_yaml(path, such_as="alice")
        found = TypeAdapter[dict[str, KeyConfig]](KeyConfigs).validate_python(content)
    except ConfigurationError as error:
        raise ConfigurationError(f"server.api_keys_file: {error}") from None
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {explain(error)}") from None
    if not found:
        raise ConfigurationError(f"{where}: holds no key, and without keys everybody would be let in")
    if path.stat().st_mode & stat.S_IROTH:
        logger.warning("%s can be read by every user of this machine: chmod o-r is better", where)
    return found


def key_digest(key: str) -> bytes:
    """SHA-256: all that is kept of a key."""
    return hashlib.sha256(key.encode()).digest()
