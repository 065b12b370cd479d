"""The current limits and API keys, which a reload replaces while the server runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.access.keys import KeyRing, build_key_ring
from server.access.limits import KeyUsage

if TYPE_CHECKING:
    from server.settings.config import ServerConfig


class Policy:
    """The limits, API keys and key usage that apply to a request.

    Read them from here for each request or connection; keep no copy beyond that. `usage` survives `update`.
    """

    def __init__(self, config: ServerConfig) -> None:
        """Reads the key file. Raises ConfigurationError."""
        self.config = config
        self.keys = load_keys(config)
        self.usage = KeyUsage()

    def update(self, config: ServerConfig, keys: KeyRing) -> None:
        """Replaces limits and keys, for new requests."""
        self.config, self.keys = config, keys
        self.usage.reload(keys)


def load_keys(config: ServerConfig) -> KeyRing:
    """The API keys of the settings and of their key file. Raises ConfigurationError."""
    return build_key_ring(config.api_keys, config.api_keys_file)
