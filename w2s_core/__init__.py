"""Weak-to-strong search (Zhou et al. 2024, arXiv:2405.19262): an engine that a server, or a program, can use.

Names are loaded when first asked for, so that importing one light module does not import them all.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from w2s_core.build.engine import build_engine
    from w2s_core.config import (
        EngineConfig,
        LargeModelConfig,
        Limits,
        PairConfig,
        RemoteLargeModelConfig,
        RemoteModelConfig,
        RemotePairConfig,
        ServedModelConfig,
        WorkersConfig,
    )
    from w2s_core.engine.engine import Engine
    from w2s_core.engine.events import ChoiceFinished, RequestFinished, TextCommitted
    from w2s_core.errors import W2SError
    from w2s_core.types import ChatPrompt, GenerationRequest, Guidance, SamplingParams, TextPrompt

__all__ = [
    "ChatPrompt",
    "ChoiceFinished",
    "Engine",
    "EngineConfig",
    "GenerationRequest",
    "Guidance",
    "LargeModelConfig",
    "Limits",
    "PairConfig",
    "RemoteLargeModelConfig",
    "RemoteModelConfig",
    "RemotePairConfig",
    "RequestFinished",
    "SamplingParams",
    "ServedModelConfig",
    "TextCommitted",
    "TextPrompt",
    "W2SError",
    "WorkersConfig",
    "build_engine",
]
_MODULES = ("types", "errors", "config", "engine.events", "engine.engine", "build.engine")  # from light to heavy


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            found = getattr(import_module(f"w2s_core.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
