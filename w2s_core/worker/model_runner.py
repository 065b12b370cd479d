"""Model runner: one model's forward pass over a batch. The only module that calls a model."""

from __future__ import annotations

import torch

from w2s_core.worker.batch import Batch
from w2s_core.worker.kv_cache import KVCache


class ModelRunner:
    """A model with its KV cache. `model` is any transformers causal LM whose attention goes through
    `AttentionInterface`, set to `attention.TREE_ATTENTION`. Logits beyond the first `vocabulary` stand for no token;
    None keeps all."""

    def __init__(
        self, model: torch.nn.Module, cache: KVCache, device: torch.device, vocabulary: int | None = None
    ) -> None:
        self.cache = cache
        self._vocabulary = vocabulary
        self._model = model
        self._device = device

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """Runs the batch and writes its KV into the cache.

        Returns logits (M, vocab) in float32: the rows of `batch.logits_rows`, then those of prompts.
        """
        inputs = batch.prepare_inputs(self.cache, self._device)
        output = self._model(
            input_ids=inputs.tokens,
            position_ids=inputs.positions,
            use_cache=False,
            logits_to_keep=inputs.logits_indices,
            tree_step=inputs.step,
        )
        logits: torch.Tensor = output.logits[0, :, : self._vocabulary].float()
        return logits

    def release_memory(self) -> None:
        """Returns torch's cached blocks to a GPU, after a batch that failed for want of memory."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
