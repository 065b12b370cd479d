"""The settings of a pair's training (`w2s pair train`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Method: TypeAlias = Literal["sft", "dpo"]
SavedDtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
ADAPT, TUNED, UNTUNED = "adapt", "tuned", "untuned"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """What is trained, on what, and how.

    `method` "sft" (supervised fine-tuning): tuned is trained on the good answers, and untuned just as long on the bad
    ones where the data has any; else untuned is the model that tuned started from. "dpo" (direct preference
    optimization, Rafailov et al. 2023, arXiv:2305.18290, with its `beta`): untuned is the reference model, which tuned
    started from.

    `adapt_epochs` > 0 first trains the base on all answers, good and bad, so that subject and style cancel in the pair.
    `lora` is the rank of LoRA adapters (Hu et al. 2021, arXiv:2106.09685), None for full weights. `held_out` is the
    share of the prompts that is kept for the figures, unless `check_data` is given. `prompt_template`: see
    `PairConfig`. Learning rates are the peaks of a linear decay. `embedding_dropout` is the share of the embeddings'
    values that are set to zero in training. `max_length` in tokens, None for the base's context.
    """

    base: str
    data: str
    out: Path
    method: Method = "sft"
    split: str = "train"
    check_data: str | None = None
    held_out: float = 0.1
    prompt_template: str | None = None
    lora: int | None = None
    adapt_epochs: int = 0
    adapt_learning_rate: float | None = None
    epochs: int = 3
    learning_rate: float | None = None
    batch_size: int = 16
    max_length: int | None = None
    beta: float = 0.1
    embedding_dropout: float = 0.0
    seed: int = 0
    saved_dtype: SavedDtype = "float32"
    large: str = "demo:smollm2-135m-instruct"

    @property
    def phases(self) -> dict[str, tuple[int, float]]:
        """Epochs and peak learning rate of each phase that may run, by its name."""
        rate = self.learning_rate or _DEFAULT_RATES[self.method] * (10 if self.lora else 1)
        adapt = self.adapt_learning_rate or _DEFAULT_RATES["sft"] * (10 if self.lora else 1)
        return {ADAPT: (self.adapt_epochs, adapt), TUNED: (self.epochs, rate), UNTUNED: (self.epochs, rate)}


_DEFAULT_RATES = {"sft": 1e-4, "dpo": 5e-6}
