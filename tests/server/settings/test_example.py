"""deploy/example.yaml loads, equals the defaults and shows every key."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from pydantic import BaseModel

from server.settings.config import Settings, load_settings
from tests.server.settings.test_config import write
from w2s_core.config import (
    AdapterConfig,
    EngineConfig,
    LargeModelConfig,
    PairConfig,
    RemoteLargeModelConfig,
    RemotePairConfig,
)

EXAMPLE = Path(__file__).parents[3] / "deploy" / "example.yaml"


def keys_of(kind: Any) -> Iterator[tuple[str, ...]]:
    """Every path of keys below a type; a name that the operator chooses is `*`."""
    if get_origin(kind) in (Union, type(int | str)):
        for member in get_args(kind):
            yield from keys_of(member)
    elif get_origin(kind) in (dict, Mapping):
        value = get_args(kind)[1]
        yield from (("*", *path) for path in keys_of(value))
    elif dataclasses.is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        hints = get_type_hints(kind)
        names = kind.model_fields if hasattr(kind, "model_fields") else [f.name for f in dataclasses.fields(kind)]
        for name in names:
            yield (name,)
            yield from ((name, *path) for path in keys_of(hints[name]))


def is_shown(content: Any, path: tuple[str, ...]) -> bool:
    if not path:
        return True
    if not isinstance(content, dict):
        return False
    if path[0] == "*":
        return any(is_shown(value, path[1:]) for value in content.values())
    return path[0] in content and is_shown(content[path[0]], path[1:])


def test_the_example_loads_and_equals_the_defaults() -> None:
    assert load_settings(EXAMPLE).model_dump() == load_settings().model_dump()


WHOLE_EXAMPLE = EXAMPLE.read_text().replace("\n#|", "\n")  # with what stands there for those who want it


def test_the_remote_models_of_the_example_load_too(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, WHOLE_EXAMPLE))
    large, pair = settings.large_models["llama"], settings.pairs["polite"]
    assert isinstance(large, RemoteLargeModelConfig)
    assert isinstance(pair, RemotePairConfig)
    assert (large.flavor, len(large.base_urls), pair.tuned.model) == ("vllm", 2, "polite")
    defaults = RemoteLargeModelConfig(base_url="http://x", model="m")
    example = replace(large, base_url="http://x", model="m", flavor="auto", tokenizer=None, api_key_env=None)
    assert example == defaults


def test_so_do_its_adapters(tmp_path: Path) -> None:
    config: EngineConfig = load_settings(write(tmp_path, WHOLE_EXAMPLE)).engine_config()
    large, pair = config.large_models["polished"], config.pairs["adapted"]
    assert isinstance(large, LargeModelConfig)
    assert isinstance(pair, PairConfig)
    assert large.model == AdapterConfig("demo:smollm2-135m-instruct", "/models/polished")
    assert pair.tuned == AdapterConfig("demo:reviews-negative", "/models/reviews-adapter")
    assert isinstance(pair.untuned, AdapterConfig)


@pytest.mark.parametrize("path", sorted(set(keys_of(Settings))), ids=".".join)
def test_the_example_shows_every_key(path: tuple[str, ...]) -> None:
    assert is_shown(yaml.safe_load(WHOLE_EXAMPLE), path)


def test_the_list_of_keys_is_not_empty() -> None:
    """Guards the test above, which would pass without checking anything if `keys_of` found no keys."""
    found = set(keys_of(Settings))
    assert ("served_models", "*", "guidance", "chunk_length") in found
    assert ("server", "drain_timeout_s") in found
    assert ("workers", "kv_cache_gb") in found
    assert len(found) > 30
