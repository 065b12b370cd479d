"""API keys: named, held as hashes only, from the settings and from a file of their own."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
        return bytes.fromhex(self.key_sha256) if self.key_sha256 else _digest(self.key.get_secret_value())  # type: ignore[union-attr]


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


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key: everything but itself."""

    name: str
    digest: bytes = field(repr=False)
    max_concurrent_requests: int | None = None
    tokens_per_minute: int | None = None


class KeyRing:
    """All keys that open. Empty: everybody is let in."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, given: str) -> ApiKey | None:
        """Compares with every key in constant time, so that timing tells nothing of any."""
        digest = _digest(given)
        found = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        return found[0] if found else None


def key_ring(configs: Mapping[str, KeyConfig], file: Path | None) -> KeyRing:
    """Of `server.api_keys` and `server.api_keys_file`. Raises ConfigurationError, which shows no key."""
    from_file = _read_keys(file) if file is not None else {}
    if twice := configs.keys() & from_file.keys():
        raise ConfigurationError(f"server.api_keys_file: {file}: server.api_keys has `{min(twice)}` as well")
    names: dict[bytes, str] = {}
    for name, config in {**configs, **from_file}.items():
        if (other := names.setdefault(config.digest, name)) != name:
            raise ConfigurationError(f"server.api_keys: `{other}` and `{name}` are the same key")
    return KeyRing(
        [
            ApiKey(name, config.digest, config.max_concurrent_requests, config.tokens_per_minute)
            for name, config in {**configs, **from_file}.items()
        ]
    )


def _read_keys(path: Path) -> dict[str, KeyConfig]:
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


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
