"""TLS, where the server itself is to speak it."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from w2s_core.errors import ConfigurationError

if TYPE_CHECKING:
    from server.settings.config import ServerConfig


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """None without a certificate. Python's defaults: TLS 1.2 or later. Raises ConfigurationError, naming the files."""
    if config.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    load_certificate(context, config)
    return context


def load_certificate(context: ssl.SSLContext, config: ServerConfig) -> None:
    """Has connections that come from now on see this certificate. Raises ConfigurationError."""
    if config.tls_certificate is None:
        return
    try:
        # A password is never asked for: nobody may sit there.
        context.load_cert_chain(config.tls_certificate, config.tls_key, password=lambda: "")
    except OSError as error:  # ssl's errors are, too
        files = f"server.tls_certificate {config.tls_certificate}, server.tls_key {config.tls_key}"
        raise ConfigurationError(f"{files}: cannot be used: {error.strerror or error}") from None
