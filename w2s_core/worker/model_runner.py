"""Runs one model over batches of many sessions' tokens. The only place where a forward happens."""

from __future__ import annotations

import torch

from w2s_core.worker.batch import Batch
from w2s_core.worker.kv_cache import KVCache


class ModelRunner:
    """`model` is any transformers causal LM whose attention goes through `AttentionInterface`: here, tree attention."""

    def __init__(self, model: torch.nn.Module, cache: KVCache, device: torch.device) -> None:
        self.cache = cache
        self._model = model
        self._device = device

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits (M, vocab) in float32, in the order of `batch.wanted`. Writes the cache. Raises CacheFullError."""
        inputs = batch.inputs(self.cache, self._device)
        output = self._model(
            input_ids=inputs.tokens,
            position_ids=inputs.positions,
            use_cache=False,
            logits_to_keep=inputs.wanted,
            tree_step=inputs.step,
        )
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def relieve(self) -> None:
        """After a batch that was too large: gives what it had taken back to the device."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
