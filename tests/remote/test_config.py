"""Validation of a provider's configuration."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from w2s_core.config import ProviderConfig
from w2s_core.errors import ConfigurationError
from w2s_core.remote.provider import Provider


def config(**keys: Any) -> ProviderConfig:
    return ProviderConfig(**{"base_url": "http://host:8000/v1", "model": "m", **keys})


def test_one_base_url_or_several_each_once() -> None:
    assert config().base_urls == ("http://host:8000/v1",)
    assert config(base_url="https://host/v1/").base_urls == ("https://host/v1",)
    assert config(base_url=("http://a", "http://b/", "http://a/")).base_urls == ("http://a", "http://b")
    assert list(config().problems()) == []


def test_a_reader_takes_a_string_or_a_list_and_no_unknown_key() -> None:
    reader = TypeAdapter(ProviderConfig)
    assert reader.validate_python({"base_url": "http://a", "model": "m"}).base_urls == ("http://a",)
    assert reader.validate_python({"base_url": ["http://a", "http://b"], "model": "m"}).base_urls[1] == "http://b"
    with pytest.raises(ValidationError, match="api_key"):
        reader.validate_python({"base_url": "http://a", "model": "m", "api_key": "x"})


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"base_url": ()}, "base_url: must name at least one URL"),
        ({"base_url": ""}, "base_url: must begin with http"),
        ({"base_url": "host:8000/v1"}, "base_url: must begin with http"),
        ({"base_url": "ftp://host"}, "base_url: must begin with http"),
        ({"base_url": "http://"}, "base_url: must begin with http"),
        ({"base_url": ("http://good", "http://host:port")}, "base_url: is not a URL"),
        ({"base_url": "http://[::1"}, "base_url: is not a URL"),
        ({"base_url": "http://user:secret@host"}, "base_url: must hold no credentials"),
        ({"base_url": "http://host/v1?api-key=secret"}, "base_url: must end with its path"),
        ({"connect_timeout_s": 0}, "connect_timeout_s: must be above 0"),
        ({"call_timeout_s": float("nan")}, "call_timeout_s: must be above 0"),
        ({"call_timeout_s": float("inf")}, "call_timeout_s: must be above 0"),
        ({"breaker_cooldown_s": -1}, "breaker_cooldown_s: must be above 0"),
        ({"max_concurrency": 0}, "max_concurrency: must be at least 1"),
        ({"max_retries": -1}, "max_retries: must be at least 0"),
        ({"breaker_failures": 0}, "breaker_failures: must be at least 1"),
    ],
)
def test_what_cannot_be_served_is_refused_by_key_and_unquoted(keys: dict[str, Any], problem: str) -> None:
    problems = list(config(**keys).problems())
    assert len(problems) == 1
    assert problems[0].startswith(problem)
    assert "secret" not in problems[0]
    with pytest.raises(ConfigurationError, match=f"^llama: {problem}"):
        Provider("llama", config(**keys))
