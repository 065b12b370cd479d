"""TLS for the server's own socket, from `server.tls_certificate` and `server.tls_key`."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from w2s_core.errors import ConfigurationError

if TYPE_CHECKING:
    from server.settings.config import ServerConfig


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """The TLS context with Python's defaults (TLS 1.2 or later), or None without a certificate.

    Raises ConfigurationError naming the files.
    """
    if config.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    load_certificate(context, config)
    return context


def load_certificate(context: ssl.SSLContext, config: ServerConfig) -> None:
    """Loads the certificate into `context`; new connections get it from then on. Raises ConfigurationError."""
    if config.tls_certificate is None:
        return
    try:
        # An encrypted key must fail here: OpenSSL would otherwise ask for its password on the terminal.
        context.load_cert_chain(config.tls_certificate, config.tls_key, password=lambda: "")
    except OSError as error:  # ssl.SSLError is an OSError
        files = f"server.tls_certificate {config.tls_certificate}, server.tls_key {config.tls_key}"
        raise ConfigurationError(f"{files}: cannot be used: {error.strerror or error}") from None
