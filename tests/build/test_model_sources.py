"""Where a model is: names of adapters mean their base with them, and mistakes name the key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from tests.adapters import save_adapter
from tests.tiny import byte_tokenizer, save_tiny
from w2s_core.build.engine import build_engine
from w2s_core.build.model_sources import ModelSource, check_references, model_source, resolve_reference
from w2s_core.build.tokenizers import TokenizerCache
from w2s_core.config import (
    AdapterConfig,
    EngineConfig,
    LargeModelConfig,
    PairConfig,
    RemoteLargeModelConfig,
    RemoteModelConfig,
    RemotePairConfig,
    RewardModelConfig,
    ServedModelConfig,
)
from w2s_core.demo.models import WEIGHTS
from w2s_core.errors import ConfigurationError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    base = save_tiny(root / "base")
    return base, save_adapter(root / "adapter", base)


@pytest.fixture
def base(saved: tuple[Path, Path]) -> Path:
    return saved[0]


@pytest.fixture
def adapter(saved: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(saved[1], tmp_path / "adapter"))


def set_base(adapter: Path, base: str | None) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))


def test_a_model_is_where_its_name_says(base: Path) -> None:
    assert resolve_reference(str(base)) == ModelSource(str(base))
    assert resolve_reference("demo:reviews-negative") == ModelSource(str(WEIGHTS / "reviews-negative"))


def test_an_adapters_folder_means_the_base_that_it_names(base: Path, adapter: Path) -> None:
    whole = resolve_reference(AdapterConfig(str(base), str(adapter)))
    assert resolve_reference(str(adapter)) == whole == ModelSource(str(base), str(adapter))
    assert whole.pool_name not in (str(base), str(adapter))
    set_base(adapter, "demo:reviews-negative")
    assert resolve_reference(str(adapter)) == ModelSource(str(WEIGHTS / "reviews-negative"), str(adapter))
    assert resolve_reference(AdapterConfig(str(base), str(adapter))) == whole


def broken(adapter: Path, base: Path, how: str) -> str | AdapterConfig:
    """A reference that is wrong in this way."""
    match how:
        case "no base":
            set_base(adapter, None)
        case "missing base":
            set_base(adapter, str(base / "gone"))
        case "other tokens":
            byte_tokenizer(size=299).save_pretrained(adapter)
        case "two in one":
            shutil.copy(base / "config.json", adapter)
        case "no JSON":
            (adapter / "adapter_config.json").write_text("{")
        case "adapter of an adapter":
            return AdapterConfig(str(adapter), str(adapter))
        case "no adapter":
            return AdapterConfig(str(base), str(base))
        case "nowhere":
            return AdapterConfig(str(base), str(adapter / "gone"))
        case "no demo":
            set_base(adapter, "demo:nobody")
    return str(adapter)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no base", "{adapter} is an adapter whose adapter_config.json names no base (base_model_name_or_path)"),
        ("missing base", "the base of the adapter {adapter}: no such folder: {base}/gone."),
        ("other tokens", "the tokenizer of the adapter {adapter} has other tokens than that of its base {base}."),
        ("two in one", "{adapter} holds a model and an adapter"),
        ("no JSON", "{adapter}: adapter_config.json cannot be read"),
        ("adapter of an adapter", "{adapter} is itself an adapter"),
        ("no adapter", "{base} is no adapter in PEFT's format: it has no adapter_config.json."),
        ("nowhere", "no such folder: {adapter}/gone."),
        ("no demo", "the base of the adapter {adapter}: there is no demo model 'demo:nobody'"),
    ],
)
def test_mistakes_name_the_key(adapter: Path, base: Path, how: str, message: str) -> None:
    reference = broken(adapter, base, how)
    large, served = {"m": LargeModelConfig(str(base))}, {"m": ServedModelConfig("m")}
    for config, key in (
        (EngineConfig(large, served, {"p": PairConfig(reference, str(base))}), "pairs.p.tuned"),
        (EngineConfig(large, served, {"p": PairConfig(str(base), reference)}), "pairs.p.untuned"),
        (EngineConfig({"m": LargeModelConfig(reference)}, served), "large_models.m.model"),
    ):
        with pytest.raises(ConfigurationError) as refused:
            build_engine(config)
        told = str(refused.value)
        part = ".adapter" if how == "nowhere" else ""
        assert told.startswith(f"{key}{part}: " + message.format(adapter=adapter, base=base))
        assert "\n" not in told


def test_reward_models_take_no_adapters(base: Path, adapter: Path) -> None:
    config = EngineConfig({}, {}, reward_models={"r": RewardModelConfig(str(adapter))})
    with pytest.raises(ConfigurationError, match=r"^reward_models\.r\.model: .* is an adapter\. Merge it"):
        build_engine(config)


def test_an_adapters_own_tokenizer_is_used(base: Path, adapter: Path) -> None:
    tokenizers = TokenizerCache()
    assert tokenizers.of_model(str(adapter)) is tokenizers.of_model(str(base))
    byte_tokenizer("{{ messages[0].content }}!").save_pretrained(adapter)
    own = TokenizerCache().of_model(str(adapter))
    assert own.chat_template.source() == "{{ messages[0].content }}!"


def test_adapters_of_a_hub_are_fetched_without_pickled_weights(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(repository: str, name: str) -> str:
        if repository == "org/adapter" and name == "adapter_config.json":
            return str(adapter / name)
        raise EntryNotFoundError("404")

    def snapshot(repository: str, allow_patterns: list[str]) -> str:
        if repository != "org/adapter":
            raise LocalEntryNotFoundError("no network")
        asked.append(allow_patterns)
        return str(adapter)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    for reference in ("org/adapter", AdapterConfig(str(base), "org/adapter")):
        assert resolve_reference(reference) == ModelSource(str(base), str(adapter))
    assert not any(Path("adapter_model.bin").match(pattern) for patterns in asked for pattern in patterns)
    assert resolve_reference("org/model") == ModelSource("org/model")
    with pytest.raises(
        ConfigurationError, match="the adapter org/other is no folder, and cannot be fetched: no network"
    ):
        resolve_reference(AdapterConfig(str(base), "org/other"))


def test_a_hub_that_cannot_be_reached_says_nothing_of_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repository: str, name: str) -> Any:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert resolve_reference("org/model") == ModelSource("org/model")


@pytest.mark.parametrize("name", ["./gone", "../gone", "/nowhere/gone", "~/models/gone", "models/gone"])
def test_a_folder_that_is_not_there_is_asked_for_at_no_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)  # raises a TypeError
    for reference in (name, AdapterConfig(name, str(tmp_path))):
        with pytest.raises(ConfigurationError, match=f"no such folder: {name}"):
            resolve_reference(reference)
    with pytest.raises(ConfigurationError, match=f"no such folder: {name}"):
        model_source(name)
    assert model_source("org/model") == "org/model"


def test_folders_are_looked_for_before_anything_is_loaded(tmp_path: Path) -> None:
    gone, provider = str(tmp_path / "gone"), {"base_url": "http://h/v1", "model": "./theirs"}
    large: dict[str, LargeModelConfig | RemoteLargeModelConfig] = {
        "here": LargeModelConfig("demo:smollm2-135m-instruct"),
        "there": RemoteLargeModelConfig(**provider),
    }
    check_references(EngineConfig(large, {}, {"p": PairConfig("org/hub", None)}))
    pair, model = PairConfig("org/hub", gone), RemoteModelConfig(**provider, tokenizer=gone)
    for config, key in (
        (EngineConfig(large, {}, {"p": pair}), "pairs.p.untuned"),
        (EngineConfig(large, {}, {"p": RemotePairConfig(tuned=model, untuned=None)}), "pairs.p.tuned.tokenizer"),
        (EngineConfig(large, {}, reward_models={"r": RewardModelConfig(gone)}), "reward_models.r.model"),
        (EngineConfig({"m": RemoteLargeModelConfig(**provider, tokenizer=gone)}, {}), "large_models.m.tokenizer"),
    ):
        with pytest.raises(ConfigurationError) as refused:
            check_references(config)
        assert str(refused.value) == f"{key}: no such folder: {gone}."
