"""Compares two configurations for a reload (SIGHUP): which keys changed, and which of them need a restart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from server.settings.config import ServerConfig, Settings
from w2s_core.guidance import SCORER_KEYS

# Keys of `server` whose value is read anew for each request, connection or shutdown.
_RELOADABLE = frozenset(
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
        "playground",
        "request_read_timeout_s",
        "request_timeout_s",
        "tls_certificate",
        "tls_key",
        "write_timeout_s",
    }
)


def changed_keys(old: Settings, new: Settings) -> list[str]:
    """The dotted keys that differ, such as `server.max_body_bytes`, `served_models.NAME` or `workers`."""
    return [
        *_changed_in("server", dict(old.server), dict(new.server)),
        *_changed_in("workers", {"": old.workers}, {"": new.workers}),
        *_changed_in("large_models", old.large_models, new.large_models),
        *(change for key in SCORER_KEYS for change in _changed_in(key, getattr(old, key), getattr(new, key))),
        *_changed_in("served_models", old.served_models, new.served_models),
    ]


def _changed_in(section: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in {**old, **new}:
        if name not in old or name not in new or old[name] != new[name]:
            yield f"{section}.{name}".rstrip(".")


def keys_needing_restart(changed: list[str], old: ServerConfig, new: ServerConfig) -> list[str]:
    """Those of the `changed` keys that need a restart, such as models, workers, the port, or TLS on and off."""
    reloadable = {f"server.{name}" for name in _RELOADABLE}
    if (old.tls_certificate is None) != (new.tls_certificate is None):
        reloadable -= {"server.tls_certificate", "server.tls_key"}
    return [key for key in changed if key not in reloadable and not key.startswith("served_models.")]
