"""What holds for requests, and may change while the server runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.access.keys import KeyRing, key_ring
from server.access.limits import KeyUsage

if TYPE_CHECKING:
    from server.settings.config import ServerConfig


class Policy:
    """Whoever needs a limit or a key asks here, at every request. What keys have used outlives a change."""

    def __init__(self, config: ServerConfig) -> None:
        """Reads the file of keys. Raises ConfigurationError."""
        self.config = config
        self.keys = keys_of(config)
        self.ledger = KeyUsage()

    def change(self, config: ServerConfig, keys: KeyRing) -> None:
        self.config, self.keys = config, keys


def keys_of(config: ServerConfig) -> KeyRing:
    """Raises ConfigurationError."""
    return key_ring(config.api_keys, config.api_keys_file)
