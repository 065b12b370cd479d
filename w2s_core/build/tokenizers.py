"""Tokenizers by model reference, each loaded once, and what a reference stands for."""

from __future__ import annotations

from w2s_core.demo.models import resolve
from w2s_core.text.tokenizer import HFTokenizer

_DEMO = "demo:"


class TokenizerCache:
    """Loads tokenizers on first use. Raises ConfigurationError where there is none."""

    def __init__(self) -> None:
        self._loaded: dict[str, HFTokenizer] = {}

    def load(self, reference: str) -> HFTokenizer:
        """`reference`: a folder, a hub id, or "demo:NAME"."""
        source = model_source(reference)
        if source not in self._loaded:
            self._loaded[source] = HFTokenizer(source)
        return self._loaded[source]


def model_source(reference: str) -> str:
    """What transformers takes: a demo model becomes its folder, fetched if need be; other references stay."""
    return str(resolve(reference)) if reference.startswith(_DEMO) else reference
