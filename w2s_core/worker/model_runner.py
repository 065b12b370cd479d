"""Model runner: one model's forward pass over a batch, or that of several models of one base. The only module that
calls a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from w2s_core.worker.batch import Batch, Inputs, join_inputs
from w2s_core.worker.cuda_graphs import Capture, StepGraphs
from w2s_core.worker.kv_cache import KVCache
from w2s_core.worker.lora import RowsError, SharedBase
from w2s_core.worker.session_grids import attend_jointly


class ModelRunner:
    """A model with its KV cache. `model` is any transformers causal LM whose attention goes through
    `AttentionInterface`, set to `attention.TREE_ATTENTION`. Logits beyond the first `vocabulary` stand for no token;
    None keeps all. `base` has the weights, and the model is this `adapter` of it or (None) the base itself.
    `joint`: whether sessions attend jointly where that is worthwhile; by default on all devices but a CPU. `capture`:
    what captures decode steps (see `cuda_graphs`); None without. `name`: the model's, for the log.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        cache: KVCache,
        device: torch.device,
        base: SharedBase,
        *,
        vocabulary: int | None = None,
        adapter: str | None = None,
        joint: bool | None = None,
        capture: Capture | None = None,
        name: str = "",
    ) -> None:
        self.cache = cache
        self.base = base
        self.adapter = adapter
        self.vocabulary = vocabulary
        self.device = device
        self.joint = device.type != "cpu" if joint is None else joint
        self.graphs = StepGraphs(capture, cache, device, name) if capture else None
        self._model = model

    def forward(self, batch: Batch) -> torch.Tensor:
        """Runs the batch and writes its KV into the cache.

        Returns logits (M, vocab) in float32: the rows of `batch.logits_rows`, then those of prompts.
        """
        [logits] = forward_together([(self, batch)])
        return logits

    def run(self, inputs: Inputs) -> torch.Tensor:
        """The logits (M, logits) of a step of this model alone, from a captured step where there is one."""
        logits = self.graphs.run(inputs, self.run_model) if self.graphs else None
        return self.run_model(self.prepare_attention(inputs)) if logits is None else logits

    def run_model(self, inputs: Inputs) -> torch.Tensor:
        """The logits (M, logits) of a step, which may be of several models of the base."""
        output = self._model(
            input_ids=inputs.tokens,
            position_ids=inputs.positions,
            use_cache=False,
            logits_to_keep=inputs.logits_indices,
            tree_steps=inputs.steps,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def prepare_attention(self, inputs: Inputs) -> Inputs:
        """The same inputs, in which sessions attend jointly where they are to."""
        return replace(inputs, steps=tuple(map(attend_jointly, inputs.steps))) if self.joint else inputs

    def release_memory(self) -> None:
        """Returns torch's cached blocks to a GPU, after a batch that failed for want of memory."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@torch.inference_mode()
def forward_together(batches: Sequence[tuple[ModelRunner, Batch]]) -> list[torch.Tensor]:
    """Runs the batches of models of one base in one forward. Returns what `ModelRunner.forward` returns, for each.

    It is a forward for each where a layer does not read the forward's tokens row by row, as an expert does to which
    only some of them are routed: there adapters cannot be told apart.
    """
    parts = [(runner, batch.prepare_inputs(runner.cache, runner.device)) for runner, batch in batches]
    base = parts[0][0].base
    if base.reads_row_by_row:
        try:
            return _forward(parts)
        except RowsError:  # never of one model's tokens
            base.reads_row_by_row = False
    return [logits for part in parts for logits in _forward([part])]


def _forward(parts: Sequence[tuple[ModelRunner, Inputs]]) -> list[torch.Tensor]:
    runners, inputs = zip(*parts, strict=True)
    first: ModelRunner = runners[0]
    first.base.assign_rows([(runner.adapter, each.tokens.shape[1], len(each.logits_indices)) for runner, each in parts])
    if len(parts) == 1:
        output = first.run(inputs[0])
    else:
        output = first.run_model(join_inputs([first.prepare_attention(each) for each in inputs]))
    logits = output.split_with_sizes([len(each.logits_indices) for each in inputs])
    return [each[:, : runner.vocabulary].float() for each, runner in zip(logits, runners, strict=True)]
