"""API keys: the set of accepted keys, from the settings and from a key file, kept as SHA-256 hashes."""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.settings.api_keys import KeyConfig, key_digest, read_keys
from w2s_core.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An accepted API key: its name, its SHA-256 digest and its limits, but not the key itself."""

    name: str
    digest: bytes = field(repr=False)
    max_concurrent_requests: int | None = None
    tokens_per_minute: int | None = None


class KeyRing:
    """The accepted API keys. An empty ring means that no key is needed."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[ApiKey]:
        return iter(self._keys)

    def find(self, key: str) -> ApiKey | None:
        """The accepted key that equals `key`. Compares with all of them in constant time, against timing attacks."""
        digest = key_digest(key)
        matches = [accepted for accepted in self._keys if hmac.compare_digest(accepted.digest, digest)]
        return matches[0] if matches else None


def build_key_ring(configs: Mapping[str, KeyConfig], file: Path | None) -> KeyRing:
    """The keys of `server.api_keys` and of `server.api_keys_file`.

    Raises ConfigurationError, whose message quotes no key, when a name or a key occurs twice.
    """
    from_file = read_keys(file) if file is not None else {}
    if duplicates := configs.keys() & from_file.keys():
        raise ConfigurationError(f"server.api_keys_file: {file}: server.api_keys has `{min(duplicates)}` as well")
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
