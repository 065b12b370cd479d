"""Phases of a training: each trains one model with TRL, in a folder of its own, and resumes where it was stopped."""

from __future__ import annotations

import contextlib
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import dropout
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from w2s_core.demo.fetch import say
from w2s_core.errors import ConfigurationError
from w2s_core.training.examples import Example
from w2s_core.training.models import BaseModel
from w2s_core.training.settings import Method, TrainingSettings

CHECKPOINT_SECONDS = 60.0
_WARMUP_SHARE = 0.05
_BLOCK = 16  # batches that are made of neighbours in length
_PROBES = 4  # answers that a trained model is tried on
_DIVERGED = "the training diverged: its {what} no longer a number. Lower --learning-rate."
_STATE = "trainer_state.json"  # the Trainer writes it last, so a checkpoint that has it is whole


@dataclass(frozen=True, slots=True)
class Phase:
    """One training: its name, the method, the examples, the steps of the optimizer, and the peak learning rate.

    The examples of "dpo" are chosen and rejected answers in turn.
    """

    name: str
    method: Method
    examples: Sequence[Example]
    steps: int
    learning_rate: float


class PhaseRunner:
    """Runs phases in the folder `work`. A phase that has ended there is not run again."""

    def __init__(self, base: BaseModel, settings: TrainingSettings, device: torch.device, work: Path) -> None:
        self._base = base
        self._settings = settings
        self._device = device
        self._work = work

    def run(self, phase: Phase, start: Path | None) -> Path:
        """Trains the model that lies at `start`, or the base, and returns the folder of the trained one."""
        folder = self._work / phase.name
        if folder.exists():
            return folder
        checkpoints = self._work / f"{phase.name}.checkpoints"
        checkpoint = _last_checkpoint(checkpoints)
        again = f", going on from step {_step(checkpoint)}" if checkpoint else ""
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            trainer = self._trainer(phase, start, checkpoints)
            say(f"{phase.name}: {len(phase.examples)} answers, {phase.steps} steps{again}")
            add_dropout(trainer.model, self._settings.embedding_dropout)
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(_Progress())
            try:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
                _check_finite(trainer.model, phase.examples[:_PROBES])
            except ConfigurationError:  # it diverged, and would again
                shutil.rmtree(checkpoints, ignore_errors=True)
                raise
        unfinished = self._work / f"{phase.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        model: Any = trainer.model
        model.save_pretrained(str(unfinished), **_default_adapter(model))
        unfinished.rename(folder)
        shutil.rmtree(checkpoints, ignore_errors=True)
        return folder

    def _trainer(self, phase: Phase, start: Path | None, checkpoints: Path) -> Trainer:
        settings = self._settings
        set_seed(settings.seed)  # new adapters begin at random
        shared: dict[str, Any] = {
            "model": self._base.load(start, settings.lora),
            "processing_class": self._base.new_tokenizer(),
            "callbacks": [_TimedCheckpoints()],
        }
        arguments = self._arguments(phase, checkpoints)
        rows = _in_order(phase, settings.batch_size, settings.seed)
        if phase.method == "sft":
            sft = SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True})
            trainer: Trainer = SFTTrainer(**shared, args=sft, train_dataset=_sft_rows(rows))
            return trainer
        reference = None if settings.lora else self._base.load(start, None)
        dpo = DPOConfig(**arguments, beta=settings.beta, disable_dropout=True)
        return _TokenDPOTrainer(**shared, ref_model=reference, args=dpo, train_dataset=_dpo_rows(rows))

    def _arguments(self, phase: Phase, checkpoints: Path) -> dict[str, Any]:
        settings, cuda = self._settings, self._device.type == "cuda"
        return {
            "output_dir": str(checkpoints),
            "max_steps": phase.steps,
            "per_device_train_batch_size": settings.batch_size,
            "learning_rate": phase.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": min(max(1, round(_WARMUP_SHARE * phase.steps)), phase.steps - 1),  # the first's rate is 0
            "weight_decay": 0.1,
            "adam_beta2": 0.98,  # short trainings: the mean of 0.999 would still be young at their end
            "max_grad_norm": 1.0,
            "max_length": None,
            "seed": settings.seed,
            "bf16": cuda and torch.cuda.is_bf16_supported(),
            "use_cpu": not cuda,
            "activation_checkpointing": cuda,
            "dataloader_pin_memory": cuda,
            "logging_steps": max(1, phase.steps // 10),
            "logging_nan_inf_filter": False,  # `_Progress` is to see them
            "train_sampling_strategy": "sequential",  # `_in_order` has shuffled them
            "save_strategy": "no",  # the callback says when
            "save_total_limit": 2,
            "report_to": "none",
        }


class _TokenDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer on answers that are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


class _Progress(ProgressCallback):
    """The trainer's progress bar, with the loss in it and not between its lines. Ends a training that diverges."""

    def on_log(self, *_: Any, logs: Mapping[str, Any] | None = None, **__: Any) -> None:
        bar: tqdm[Any] | None = self.training_bar
        losses = [float(value) for name, value in (logs or {}).items() if name in ("loss", "train_loss")]
        if not all(map(math.isfinite, losses)):
            if bar is not None:
                bar.close()
            raise ConfigurationError(_DIVERGED.format(what="loss is"))
        if bar is not None and logs and "loss" in logs:
            bar.set_postfix(loss=logs["loss"], refresh=False)


class _TimedCheckpoints(TrainerCallback):
    """Saves a checkpoint every CHECKPOINT_SECONDS."""

    def __init__(self) -> None:
        self._saved_at = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> TrainerControl:
        if time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS and state.global_step < state.max_steps:
            self._saved_at = time.monotonic()
            control.should_save = True
        return control


def _check_finite(model: Any, examples: Sequence[Example]) -> None:
    """Raises ConfigurationError for a model whose logits overflow: the last steps may have spoiled it unseen."""
    model.eval()
    for example in examples:
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([[*example.prompt_ids, *example.answer_ids]], device=model.device)
            ).logits
        if not logits.isfinite().all():
            raise ConfigurationError(_DIVERGED.format(what="model's logits are"))


def add_dropout(model: Any, share: float) -> None:
    """Sets this share of the input embeddings' values to zero while the model is in training mode.

    Not without gradients: DPO's reference is the same model without its adapter.
    """
    if share:
        model.get_input_embeddings().register_forward_hook(
            lambda module, _, output: dropout(output, share, training=module.training and torch.is_grad_enabled())
        )


def _in_order(phase: Phase, batch_size: int, seed: int) -> list[tuple[Example, ...]]:
    """The rows of all steps: single examples, or for "dpo" chosen and rejected ones.

    Each epoch has them in new batches of similar length (little padding), which are in random order. What does not fill
    a batch goes to the next epoch.
    """
    rng = random.Random(seed)
    width = 2 if phase.method == "dpo" else 1
    rows = [tuple(phase.examples[i : i + width]) for i in range(0, len(phase.examples), width)]
    ordered: list[tuple[Example, ...]] = []
    rest: list[tuple[Example, ...]] = []
    while len(ordered) < phase.steps * batch_size:
        epoch = rest + rng.sample(rows, len(rows))
        full = len(epoch) // batch_size * batch_size
        epoch, rest = epoch[:full], epoch[full:]
        block = batch_size * _BLOCK
        blocks = [sorted(epoch[i : i + block], key=_longest) for i in range(0, full, block)]
        batches = [block[i : i + batch_size] for block in blocks for i in range(0, len(block), batch_size)]
        rng.shuffle(batches)
        ordered += [row for batch in batches for row in batch]
    return ordered[: phase.steps * batch_size]


def _longest(row: Sequence[Example]) -> int:
    return max(example.length for example in row)


def _sft_rows(rows: Sequence[Sequence[Example]]) -> Dataset:
    """Token ids and labels, which are −100 in the prompt, without loss."""
    content = [
        {"input_ids": [*e.prompt_ids, *e.answer_ids], "labels": [*[-100] * len(e.prompt_ids), *e.answer_ids]}
        for (e,) in rows
    ]
    return Dataset.from_list(content)


def _dpo_rows(rows: Sequence[Sequence[Example]]) -> Dataset:
    content = [
        {
            "prompt_ids": list(chosen.prompt_ids),
            "chosen_ids": list(chosen.answer_ids),
            "rejected_ids": list(rejected.answer_ids),
        }
        for chosen, rejected in rows
    ]
    return Dataset.from_list(content)


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    return max(
        (path.parent for path in folder.glob(f"checkpoint-*/{_STATE}") if _is_json(path)), key=_step, default=None
    )


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _default_adapter(model: Any) -> dict[str, Any]:
    """Of an adapter model, saves the one that was trained, and not the reference that DPO keeps beside it."""
    return {} if isinstance(model, PreTrainedModel) else {"selected_adapters": ["default"]}
