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


def read_api_key(config: ProviderConfig, key: str) -> str | None:
    """Reads the API key from the environment variable `config.api_key_env`; None where none is configured.

    Raises ConfigurationError, which names `key` (the model's place in the configuration), when the variable is missing
    or cannot be an API key. Only the composition root calls this.
    """
    if config.api_key_env is None:
        return None
    api_key = os.environ.get(config.api_key_env, "").strip()
    if not is_api_key(api_key):
        raise ConfigurationError(f"{key}.api_key_env: set the environment variable {config.api_key_env} to an API key.")
    return api_key


def is_api_key(text: str) -> bool:
    """Whether a header can carry the text as an API key. An error about one that it cannot would show it."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


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
