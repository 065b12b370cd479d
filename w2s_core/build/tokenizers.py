"""Tokenizer cache, and the resolution of model references (`demo:NAME`, folders, hub ids)."""

from __future__ import annotations

from w2s_core.demo.models import resolve
from w2s_core.text.tokenizer import HFTokenizer

_DEMO = "demo:"


class TokenizerCache:
    """Loads each tokenizer once, on first use. Raises ConfigurationError if a model has none."""

    def __init__(self) -> None:
        self._loaded: dict[str, HFTokenizer] = {}

    def load(self, reference: str) -> HFTokenizer:
        """The tokenizer of a model; `reference` is a folder, a hub id, or "demo:NAME"."""
        source = model_source(reference)
        if source not in self._loaded:
            self._loaded[source] = HFTokenizer(source)
        return self._loaded[source]


def model_source(reference: str) -> str:
    """The folder or hub id to load with transformers. A demo model is fetched first if it is not cached."""
    return str(resolve(reference)) if reference.startswith(_DEMO) else reference
