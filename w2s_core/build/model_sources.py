"""Resolution of model references: `demo:NAME`, folders and hub ids, of models and of LoRA adapters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import httpx

from w2s_core.config import AdapterConfig, EngineConfig, ModelReference, RemoteModelConfig, is_path
from w2s_core.demo.models import PREFIX, check_known, resolve
from w2s_core.errors import ConfigurationError

_CONFIG, _ADAPTER_CONFIG = "config.json", "adapter_config.json"
_ADAPTER_FILES = ["*.json", "*.jinja", "adapter_model.safetensors"]  # also its tokenizer; never pickled weights


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's weights are: a folder or hub id for transformers, and the folder of a LoRA adapter."""

    model: str
    adapter: str | None = None

    @property
    def pool_name(self) -> str:
        """The model's name in the worker pool."""
        return self.model if self.adapter is None else f"{self.model} with {self.adapter}"


def model_source(reference: str) -> str:
    """The folder or hub id to load with transformers. A demo model is fetched first if it is not cached.

    Raises ConfigurationError as `check_reference`.
    """
    check_reference(reference)
    return str(resolve(reference)) if reference.startswith(PREFIX) else reference


def check_references(config: EngineConfig) -> None:
    """`check_reference` for all models and tokenizers of a configuration, by their keys."""
    sections = {"large_models": config.large_models, "pairs": config.pairs, "reward_models": config.reward_models}
    for section, entries in sections.items():
        for name, entry in entries.items():
            for role in ("model", "tuned", "untuned", "tokenizer"):
                reference, key = getattr(entry, role, None), f"{section}.{name}.{role}"
                if isinstance(reference, RemoteModelConfig):
                    reference, key = reference.tokenizer, f"{key}.tokenizer"
                elif role == "model" and entry.backend == "remote":
                    continue  # a name of the provider's
                if reference is not None:
                    check_reference(reference, key)


def check_reference(reference: ModelReference, key: str = "") -> None:
    """Raises ConfigurationError for a folder that is not there, of which no hub is asked, and for no demo model's name.

    `key` is what the message calls the name.
    """
    if isinstance(reference, AdapterConfig):
        check_reference(reference.model, key and f"{key}.model")
        check_reference(reference.adapter, key and f"{key}.adapter")
    elif is_path(reference) and not Path(reference).is_dir():
        hint = " Write the whole path: only a shell knows `~`." if reference.startswith("~") else ""
        raise ConfigurationError(f"{key}: no such folder: {reference}.{hint}".removeprefix(": "))
    elif reference.startswith(PREFIX):
        check_known(reference, key)


def resolve_reference(reference: ModelReference) -> ModelSource:
    """Where the model of a reference is. One that names an adapter alone means the base that the adapter names.

    Demo models and adapters from a hub are fetched first if they are not cached. Raises ConfigurationError.
    """
    check_reference(reference)
    if isinstance(reference, AdapterConfig):
        return ModelSource(_base(reference.model), _adapter_folder(reference.adapter))
    source = model_source(reference)
    if not _is_adapter(source):
        return ModelSource(source)
    folder = _adapter_folder(source)
    base = _read_base(folder)
    if not base:
        raise ConfigurationError(
            f"{reference} is an adapter whose {_ADAPTER_CONFIG} names no base (base_model_name_or_path). "
            f"Write {{model: BASE, adapter: {reference}}}."
        )
    check_reference(base, f"the base of the adapter {reference}")
    return ModelSource(_base(base), folder)


def _base(reference: str) -> str:
    """The source of an adapter's base, which must not be an adapter."""
    source = model_source(reference)
    if _is_adapter(source):
        raise ConfigurationError(f"{reference} is itself an adapter, and cannot be the base of another one.")
    return source


def _is_adapter(source: str) -> bool:
    """Whether it holds an adapter and no model. Raises ConfigurationError if it holds both."""
    folder = Path(source)
    if not folder.is_dir():
        return _hub_file(source, _CONFIG) is None and _hub_file(source, _ADAPTER_CONFIG) is not None
    if not (folder / _ADAPTER_CONFIG).is_file():
        return False
    if (folder / _CONFIG).is_file():
        raise ConfigurationError(
            f"{source} holds a model and an adapter ({_CONFIG} and {_ADAPTER_CONFIG}). Move the adapter into a folder "
            "of its own, and write {model: BASE, adapter: FOLDER} to use it."
        )
    return True


def _read_base(folder: str) -> str | None:
    try:
        config = json.loads((Path(folder) / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
        if base is not None and not isinstance(base, str):
            raise ValueError("base_model_name_or_path is no text")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{folder}: {_ADAPTER_CONFIG} cannot be read: {error}") from None
    return base


def _adapter_folder(reference: str) -> str:
    """The folder of an adapter, fetched from the hub if it is none."""
    folder = reference
    if not Path(reference).is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(reference, allow_patterns=_ADAPTER_FILES)
        except (OSError, ValueError, httpx.HTTPError) as error:
            reason = " ".join(str(error).split())
            raise ConfigurationError(f"the adapter {reference} is no folder, and cannot be fetched: {reason}") from None
    if not (Path(folder) / _ADAPTER_CONFIG).is_file():
        raise ConfigurationError(f"{reference} is no adapter in PEFT's format: it has no {_ADAPTER_CONFIG}.")
    return folder


def _hub_file(source: str, name: str) -> Path | None:
    """A file of a hub repository, None where it cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(source, name))
    except (EntryNotFoundError, OSError, ValueError, httpx.HTTPError):
        return None
