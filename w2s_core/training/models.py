"""The base model of a training: its tokenizer, its size, and loading it, with LoRA adapters where they are trained."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch
from accelerate import init_empty_weights
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from w2s_core.errors import ConfigurationError
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.training.settings import TrainingSettings
from w2s_core.worker.loading import context_length

_FULL_BYTES, _FROZEN_BYTES = 16, 4  # per parameter: weight, gradient and two moments of AdamW; a weight alone
_LOGIT_COPIES = 3  # of rows × tokens × vocabulary float32 values: logits, their softmax, their gradient


class BaseModel:
    """The base model on disk; its `context_length` and `vocabulary` are in tokens.

    Raises ConfigurationError if it cannot be loaded, or its tokenizer is not its own.
    """

    def __init__(self, source: str) -> None:
        if (Path(source) / "adapter_config.json").is_file() and not (Path(source) / "config.json").is_file():
            raise ConfigurationError(f"--base: {source} is an adapter, and no model. Merge it into its base first.")
        self.source = source
        self.tokenizer = HFTokenizer(source)
        if self.tokenizer.eos is None:
            raise ConfigurationError(f"--base: the tokenizer of {source} has no EOS, which ends an answer.")
        try:
            config = AutoConfig.from_pretrained(source)
            with init_empty_weights():
                empty = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
            empty.tie_weights()  # shared ones count once
            self.context_length = context_length(config)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"--base: {source} cannot be loaded: {_one_line(error)}") from None
        self.parameters: int = empty.num_parameters()
        self.vocabulary: int = empty.get_input_embeddings().num_embeddings
        if self.tokenizer.size > self.vocabulary:
            raise ConfigurationError(
                f"--base: the tokenizer of {source} has {self.tokenizer.size} tokens, and the model knows only "
                f"{self.vocabulary}; it must be the model's own."
            )

    def check_memory(self, settings: TrainingSettings, longest: int, device: torch.device) -> None:
        """Raises ConfigurationError if the training, with rows of at most `longest` tokens, will not fit the memory."""
        references = 1 if settings.method == "dpo" and not settings.lora else 0
        weights = self.parameters * ((_FROZEN_BYTES if settings.lora else _FULL_BYTES) + references * _FROZEN_BYTES)
        rows = settings.batch_size * (2 if settings.method == "dpo" else 1)
        needed = weights + _LOGIT_COPIES * 4 * rows * longest * self.vocabulary
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        if needed > free:
            raise ConfigurationError(
                f"not enough memory: training {self.source} in batches of {settings.batch_size} answers of up to "
                f"{longest} tokens takes more than {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Use "
                "--lora, a smaller --batch-size or shorter answers."
            )

    def load(self, start: Path | None, lora: int | None) -> PreTrainedModel | PeftModel:
        """The model in float32 for training, from what a phase saved at `start`, or the base. With LoRA, adapters."""
        source = self.source if start is None or lora else str(start)
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise ConfigurationError(f"--base: {source} cannot be loaded: {_one_line(error)}") from None
        if lora is None:
            return model
        if start is not None:
            return PeftModel.from_pretrained(model, str(start), is_trainable=True)
        config = LoraConfig(r=lora, lora_alpha=2 * lora, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, config)

    def new_tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer object of its own, for a trainer to change."""
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(self.source)
        return tokenizer


def pick_device() -> torch.device:
    """The first GPU, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
