"""The schema of API keys in the settings, and the reader of a key file (`server.api_keys_file`)."""

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

from server.settings.files import describe_validation_error, read_yaml
from w2s_core.errors import ConfigurationError

logger = logging.getLogger(__name__)

_HEADER_SAFE = re.compile(r"[!-~]+", re.ASCII)  # fits into an `Authorization` header unchanged


def _check_header_safe(key: SecretStr) -> SecretStr:
    if not _HEADER_SAFE.fullmatch(key.get_secret_value()):
        raise ValueError("must be printable ASCII without spaces, and not empty")
    return key


class KeyConfig(BaseModel):
    """An API key, or its SHA-256 in hexadecimal, and its limits at each replica."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: Annotated[SecretStr, AfterValidator(_check_header_safe)] | None = None
    key_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    max_concurrent_requests: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _has_one_key(self) -> Self:
        if (self.key is None) == (self.key_sha256 is None):
            raise ValueError("needs exactly one of `key` and `key_sha256`")
        return self

    @property
    def digest(self) -> bytes:
        """The key's SHA-256."""
        return bytes.fromhex(self.key_sha256) if self.key_sha256 else key_digest(self.key.get_secret_value())  # type: ignore[union-attr]


def _to_mapping(value: Any) -> Any:
    """Keys by name. Keys in a list or separated by commas are named `key-1`, …; a string stands for `{key: …}`."""
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


KeyConfigs = Annotated[dict[KeyName, KeyConfig], BeforeValidator(_to_mapping)]


def read_keys(path: Path) -> dict[str, KeyConfig]:
    """The keys of a key file, by name. Raises ConfigurationError, which quotes no key; an empty file is an error."""
    where = f"server.api_keys_file: {path}"
    try:
        content = read_yaml(path, example_key="alice")
        keys = TypeAdapter[dict[str, KeyConfig]](KeyConfigs).validate_python(content)
    except ConfigurationError as error:
        raise ConfigurationError(f"server.api_keys_file: {error}") from None
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {describe_validation_error(error)}") from None
    if not keys:
        raise ConfigurationError(
            f"{where}: holds no key. Add one, or leave the setting out to accept requests without a key"
        )
    if path.stat().st_mode & stat.S_IROTH:
        logger.warning("%s can be read by every user of this machine. Run `chmod o-r` on it.", where)
    return keys


def key_digest(key: str) -> bytes:
    """The SHA-256 of a key, the only form in which the server keeps it."""
    return hashlib.sha256(key.encode()).digest()
