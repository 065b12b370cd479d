"""Tokenizer cache: loads each model's tokenizer once, that of an adapter from its own folder where it has one."""

from __future__ import annotations

from pathlib import Path

from w2s_core.build.model_sources import ModelSource, model_source, resolve_reference
from w2s_core.config import ModelReference
from w2s_core.errors import ConfigurationError
from w2s_core.text.tokenizer import HFTokenizer


class TokenizerCache:
    """Loads each tokenizer, and resolves each model reference, once. Raises ConfigurationError if one cannot be."""

    def __init__(self) -> None:
        self._loaded: dict[str, HFTokenizer] = {}
        self._sources: dict[ModelReference, ModelSource] = {}

    def load(self, reference: str) -> HFTokenizer:
        """The tokenizer in a folder, of a hub id, or of "demo:NAME"."""
        source = model_source(reference)
        if source not in self._loaded:
            self._loaded[source] = HFTokenizer(source)
        return self._loaded[source]

    def source(self, reference: ModelReference) -> ModelSource:
        """Where the model is: see `resolve_reference`."""
        if reference not in self._sources:
            self._sources[reference] = resolve_reference(reference)
        return self._sources[reference]

    def of_model(self, reference: ModelReference) -> HFTokenizer:
        """A model's tokenizer. An adapter's own, which may have another chat template, must have its base's tokens."""
        source = self.source(reference)
        if source.adapter is None:
            return self.load(source.model)
        try:
            base = self.load(source.model)
        except ConfigurationError as error:
            raise ConfigurationError(f"the base of the adapter {source.adapter}: {error}") from None
        if not (Path(source.adapter) / "tokenizer.json").is_file():
            return base
        own = self.load(source.adapter)
        if own.vocabulary != base.vocabulary:
            raise ConfigurationError(
                f"the tokenizer of the adapter {source.adapter} has other tokens than that of its base {source.model}."
            )
        return own
