"""API keys: named, held as hashes only, from the settings and from a file of their own."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.settings.api_keys import KeyConfig, key_digest, read_keys
from w2s_core.errors import ConfigurationError


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
        digest = key_digest(given)
        found = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        return found[0] if found else None


def key_ring(configs: Mapping[str, KeyConfig], file: Path | None) -> KeyRing:
    """Of `server.api_keys` and `server.api_keys_file`. Raises ConfigurationError, which shows no key."""
    from_file = read_keys(file) if file is not None else {}
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
