"""The keys of a large model whose vLLM the server runs, and the arguments that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.settings.config import Settings, load_settings
from tests.server.settings.test_config import write
from tests.server.settings.test_example import WHOLE_EXAMPLE
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig, ManagedLargeModelConfig
from w2s_core.errors import ConfigurationError


def load(folder: Path, **keys: Any) -> Settings:
    model = {"backend": "vllm", "model": "org/llama"} | keys
    return load_settings(write(folder, {"large_models": {"llama": model}, "served_models": {"m": {"large": "llama"}}}))


def test_its_keys_and_defaults(tmp_path: Path) -> None:
    assert load(tmp_path).large_models["llama"] == ManagedLargeModelConfig(model="org/llama")
    extra = ["--gpu-memory-utilization", "0.9", "-O3", "--tokenizer-mode=mistral", "--max-num-seqs=4"]
    keys = {"tensor_parallel_size": 4, "quantization": "awq", "max_model_len": 4096, "start_timeout_s": 60}
    config = load(tmp_path, extra_args=extra, **keys).engine_config().large_models["llama"]
    assert config == ManagedLargeModelConfig(model="org/llama", extra_args=tuple(extra), **keys)  # type: ignore[arg-type]


def test_the_example_shows_the_defaults(tmp_path: Path) -> None:
    example = load_settings(write(tmp_path, WHOLE_EXAMPLE)).large_models["llama-here"]
    assert example == ManagedLargeModelConfig(model=example.model)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": ""}, "model: must not be empty"),
        ({"command": " "}, "command: must not be empty"),
        ({"model": "--port"}, "model: must not be empty or begin with -"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size: must be at least 1"),
        ({"tensor_parallel_size": "many"}, "tensor_parallel_size: "),
        ({"max_model_len": 0}, "max_model_len: must be at least 1"),
        ({"max_concurrency": 0}, "max_concurrency: must be at least 1"),
        ({"start_timeout_s": 0}, "start_timeout_s: must be above 0"),
        ({"call_timeout_s": float("inf")}, "call_timeout_s: must be above 0"),
        ({"extra_args": "--seed=1"}, "extra_args: "),
        ({"extra_args": ["--max-num-seqs", 4]}, "extra_args.1: "),
        ({"base_url": "http://x"}, "base_url: unknown key"),
        ({"devices": ["cpu"]}, "devices: unknown key"),
        ({"backend": "vlm"}, "backend: must be `local` or `remote` or `vllm`"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"large_models\.llama\.{message}"):
        load(tmp_path, **keys)


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("--port", "port"),
        ("--port=1", "port"),
        ("--por", "port"),
        ("--host=0.0.0.0", "host"),
        ("--api-key", "api-key"),
        ("--api_key=secret", "api-key"),
        ("--served_model_name", "served-model-name"),
        ("--uds=/tmp/x", "uds"),
        ("--config=x.yaml", "config"),
        ("--ssl-keyfile=x", "ssl-keyfile"),
        ("--tokenizer=x", "tokenizer"),
        ("--headless", "headless"),
        ("--no-disable-uvicorn-access-log", "disable-uvicorn-access-log"),
    ],
)
def test_arguments_that_the_server_sets_are_refused(tmp_path: Path, argument: str, name: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path, extra_args=["--seed=1", argument])
    assert f"large_models.llama.extra_args: must not have --{name}; the server sets it" in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("argument", "key"),
    [("-tp=4", "tensor_parallel_size"), ("-qawq", "quantization"), ("--max_model_len=1", "max_model_len")],
)
def test_arguments_with_a_key_of_their_own_are_refused(tmp_path: Path, argument: str, key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"extra_args: must not have --.*; set the key {key}"):
        load(tmp_path, extra_args=[argument])


@pytest.mark.parametrize(
    ("argument", "name"), [("--revision=v2", "revision"), ("--tokenizer_rev", "tokenizer-revision")]
)
def test_a_revision_that_the_server_would_not_read_is_refused(tmp_path: Path, argument: str, name: str) -> None:
    message = f"extra_args: must not have --{name}; download that revision and set the key model to its folder"
    with pytest.raises(ConfigurationError, match=message):
        load(tmp_path, extra_args=[argument])


def test_a_pair_cannot_be_there(tmp_path: Path) -> None:
    pair = {"backend": "vllm", "tuned": "x", "untuned": "y"}
    content = {"large_models": {"a": {"model": "x"}}, "served_models": {"a": {"large": "a"}}, "pairs": {"p": pair}}
    with pytest.raises(ConfigurationError, match=r"pairs\.p\.backend: must be `local` or `remote`$"):
        load_settings(write(tmp_path, content))


def test_the_engine_checks_them_too() -> None:
    large = ManagedLargeModelConfig(model="org/llama", extra_args=("--port=1",))
    with pytest.raises(ConfigurationError, match=r"^large_models\.llama: extra_args: must not have --port"):
        build_engine(EngineConfig({"llama": large}, {}))
