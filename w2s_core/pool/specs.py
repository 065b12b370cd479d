"""Specifications of what a worker process runs, and the properties of the models that it has loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class RewardHead:
    """Loads a model as a reward model: with its sequence-classification head instead of its logits.

    `key` is the model's place in the configuration, for messages. `label`: see `RewardModelConfig`.
    """

    key: str
    label: str | int | None = None


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """A LoRA adapter in PEFT's format, in a folder. `key` is the model's place in the configuration, for messages."""

    key: str
    folder: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to load. `source` is what transformers takes: a folder or a hub id.

    Its tokenizer may say otherwise than its configuration. `tokens` is the tokenizer's size: the model may have more
    logits, which then are never drawn (None keeps all). `eos` is the tokenizer's EOS token, which ends answers, too.
    `reward`: None unless it is a reward model. `adapter`: None unless it is an adapted model, whose base is `source`.
    `quantization`: of its linear layers, when it is loaded. `key`: the model's place in the configuration, for
    messages.
    """

    source: str
    trust_remote_code: bool
    tokens: int | None = None
    eos: int | None = None
    reward: RewardHead | None = None
    adapter: AdapterSpec | None = None
    quantization: Literal["none", "int8"] = "none"
    key: str = ""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What one worker process runs: device (several are joined by `+`), models by name, CPU threads (0 = torch's
    default), KV bytes per model (0 = auto), and whether decode steps are captured as CUDA graphs."""

    device: str
    dtype: str
    threads: int
    kv_cache_bytes: int
    models: Mapping[str, ModelSpec]
    cuda_graphs: bool = False


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A loaded model's properties. Ids below `vocabulary` can be read, drawn and decoded; `eos` are those that end a
    text. `kv_slots` is the number of tokens that its KV cache holds."""

    context_length: int
    vocabulary: int
    eos: frozenset[int]
    kv_slots: int
    kv_bytes_per_token: int
    dtype: str

    @property
    def max_length(self) -> int:
        """Tokens that a prompt and one answer may have together: what fits both the context and the KV cache."""
        return min(self.context_length, self.kv_slots)
