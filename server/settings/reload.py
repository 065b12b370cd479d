"""A configuration that is read again while the server runs: all of it holds from then on, or nothing of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from server.settings.config import ServerConfig, Settings

# Of `server`, what whoever uses it asks for anew each time.
_LIVE = frozenset(
    {
        "api_keys",
        "api_keys_file",
        "drain_timeout_s",
        "log_level",
        "log_prompts",
        "max_body_bytes",
        "max_connections",
        "max_header_bytes",
        "max_headers",
        "max_queued_rows",
        "max_rows_per_request",
        "max_sampled_tokens_per_request",
        "request_read_timeout_s",
        "request_timeout_s",
        "tls_certificate",
        "tls_key",
        "write_timeout_s",
    }
)


def changes(old: Settings, new: Settings) -> list[str]:
    """The keys that differ, such as `server.max_body_bytes` and `served_models.NAME`."""
    return [
        *_of("server", dict(old.server), dict(new.server)),
        *_of("workers", {"": old.workers}, {"": new.workers}),
        *_of("large_models", old.large_models, new.large_models),
        *_of("pairs", old.pairs, new.pairs),
        *_of("served_models", old.served_models, new.served_models),
    ]


def _of(section: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in {**old, **new}:
        if name not in old or name not in new or old[name] != new[name]:
            yield f"{section}.{name}".rstrip(".")


def need_a_restart(changed: list[str], old: ServerConfig, new: ServerConfig) -> list[str]:
    """Those of the changed keys that a running server cannot follow: what models there are, where it listens."""
    live = {f"server.{name}" for name in _LIVE}
    if (old.tls_certificate is None) != (new.tls_certificate is None):
        live -= {"server.tls_certificate", "server.tls_key"}
    return [key for key in changed if key not in live and not key.startswith("served_models.")]
