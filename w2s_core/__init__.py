"""An inference engine for weak-to-strong search (Zhou et al. 2024, arXiv:2405.19262), for the server or any program.

The names in `__all__` are imported lazily, so `import w2s_core.types` does not import the engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from w2s_core.build.engine import build_engine
    from w2s_core.config import (
        AdapterConfig,
        EngineConfig,
        LargeModelConfig,
        Limits,
        ManagedLargeModelConfig,
        PairConfig,
        PythonScorerConfig,
        RemoteLargeModelConfig,
        RemoteModelConfig,
        RemotePairConfig,
        RemoteRewardModelConfig,
        RewardModelConfig,
        ServedModelConfig,
        WorkersConfig,
    )
    from w2s_core.engine.engine import Engine
    from w2s_core.engine.events import ChoiceFinished, RequestFinished, RoundFinished, TextCommitted
    from w2s_core.errors import W2SError
    from w2s_core.scorers.answer_scorer import AnswerScorer
    from w2s_core.types import ChatPrompt, GenerationRequest, Guidance, SamplingParams, TextPrompt

__all__ = [
    "AdapterConfig",
    "AnswerScorer",
    "ChatPrompt",
    "ChoiceFinished",
    "Engine",
    "EngineConfig",
    "GenerationRequest",
    "Guidance",
    "LargeModelConfig",
    "Limits",
    "ManagedLargeModelConfig",
    "PairConfig",
    "PythonScorerConfig",
    "RemoteLargeModelConfig",
    "RemoteModelConfig",
    "RemotePairConfig",
    "RemoteRewardModelConfig",
    "RequestFinished",
    "RewardModelConfig",
    "RoundFinished",
    "SamplingParams",
    "ServedModelConfig",
    "TextCommitted",
    "TextPrompt",
    "W2SError",
    "WorkersConfig",
    "build_engine",
]
# The cheapest import first.
_MODULES = ("types", "errors", "config", "engine.events", "scorers.answer_scorer", "engine.engine", "build.engine")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            value = getattr(import_module(f"w2s_core.{module}"), name, None)
            if value is not None:
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
