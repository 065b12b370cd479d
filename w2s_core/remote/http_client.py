"""The httpx client of a provider: API key, headers, certificates, time-outs, kept connections, and no cookies."""

from __future__ import annotations

import logging
import os
import ssl
from functools import cache
from http.cookiejar import CookieJar

import httpx

from w2s_core.config import ProviderConfig
from w2s_core.errors import ConfigurationError

_KEEPALIVE_S = 4.0  # uvicorn, which vLLM uses, closes idle connections after 5 s: we must close them first
_LOOPBACK = ("127.0.0.1", "[::1]", "localhost")  # that a proxy from the environment would take for its own machine


def read_api_key(variable: str | None, key: str) -> str | None:
    """Reads an API key from an environment variable; None where none is configured.

    Raises ConfigurationError, which names `key` (where the variable is configured), when the variable is missing or
    cannot be an API key: an error about one that no header can carry would show it. Only composition roots call this.
    """
    if variable is None:
        return None
    api_key = os.environ.get(variable, "").strip()
    if not (api_key and api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise ConfigurationError(f"{key}: set the environment variable {variable} to an API key.")
    return api_key


def make_http_client(config: ProviderConfig, api_key: str | None) -> httpx.AsyncClient:
    """Returns a client that sends `api_key` with every request; the first ones make the connections."""
    _silence_http_loggers()
    headers = {"accept": "application/json", "accept-encoding": "identity", "content-type": "application/json"}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    return httpx.AsyncClient(
        headers=headers,
        cookies=_NoCookies(),
        verify=_certificates(),
        timeout=httpx.Timeout(config.call_timeout_s, connect=config.connect_timeout_s),
        mounts={f"all://{host}": None for host in _LOOPBACK},
        limits=httpx.Limits(max_keepalive_connections=config.max_concurrency, keepalive_expiry=_KEEPALIVE_S),
    )


class _NoCookies(CookieJar):
    """Keeps no cookies: one that is not ASCII would fail all later calls, and their number has no bound."""

    def extract_cookies(self, response: object, request: object) -> None:
        pass


@cache
def _certificates() -> ssl.SSLContext:
    """The system's certificates, loaded once for all providers because it takes tens of milliseconds."""
    return httpx.create_ssl_context()


def _silence_http_loggers() -> None:
    """Raises the levels of httpx's and httpcore's loggers to WARNING, unless they have been set on purpose.

    Both log status lines and headers, in which a provider may echo our key.
    """
    for name in ("httpx", "httpcore"):
        http_logger = logging.getLogger(name)
        if http_logger.level == logging.NOTSET:
            http_logger.setLevel(logging.WARNING)
