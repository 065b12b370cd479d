"""What the tests of EFT over workers share: an engine whose pairs have the large model's vocabulary, and others."""

from __future__ import annotations

from pathlib import Path

from w2s_core.config import (
    EngineConfig,
    LargeModelConfig,
    PairConfig,
    ServedModelConfig,
    WorkersConfig,
)
from w2s_core.types import Guidance

EFT = Guidance("eft", {"same": 1.5})
TUNED = Guidance("eft", {"self": 1.0})  # π_base is its untuned model, so that the tuned model's answers come out


def eft_config(folders: dict[str, Path]) -> EngineConfig:
    """Served: `plain`, `eft`, and `tuned`, which is the pairs' tuned model itself. `folders`: see conftest."""
    large, tuned, untuned = (str(folders[name]) for name in ("large", "tuned", "untuned"))
    foreign = [str(folders[f"foreign-{name}"]) for name in ("tuned", "untuned")]
    return EngineConfig(
        large_models={"large": LargeModelConfig(large), "tuned": LargeModelConfig(tuned)},
        pairs={
            "same": PairConfig(tuned, untuned, prompt_template="Q: {prompt}"),
            "self": PairConfig(tuned, large),
            "reverse": PairConfig(large, untuned),
            "foreign": PairConfig(*foreign),
        },
        served_models={
            "plain": ServedModelConfig("large"),
            "tuned": ServedModelConfig("tuned"),
            "eft": ServedModelConfig("large", EFT),
        },
        workers=WorkersConfig(devices=("cpu",), threads=1, dtype="float32"),
    )
