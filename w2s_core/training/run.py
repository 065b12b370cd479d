"""Trains a pair: reads the data, runs the phases, checks the pair on held-out answers, and writes its folder."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from w2s_core.build.model_sources import check_reference, model_source
from w2s_core.config import WorkersConfig
from w2s_core.demo.fetch import say
from w2s_core.errors import ConfigurationError
from w2s_core.pairs.check import PairCheck
from w2s_core.pairs.run import check_pair
from w2s_core.training.data import TrainingData, read_data
from w2s_core.training.examples import Example, encode_examples, template_for
from w2s_core.training.folder import open_work_folder
from w2s_core.training.models import BaseModel, pick_device
from w2s_core.training.output import PairOutput
from w2s_core.training.phases import Phase, PhaseRunner
from w2s_core.training.settings import ADAPT, TUNED, UNTUNED, Method, TrainingSettings
from w2s_core.worker.freed_memory import keep_freed_memory

_UNBALANCED = 2  # times as many good answers as bad ones, or the reverse
_NO_MEMORY = re.compile("not enough memory|can't allocate memory")  # of torch's CPU allocator, by its platform


def train_pair(settings: TrainingSettings) -> PairCheck | None:
    """Trains a pair and writes `settings.out`: its models, a model card and the configuration that serves it.

    Progress goes to stderr. A training that was stopped goes on where it was. Returns the pair's check on held-out
    answers, None where there are none. Raises ConfigurationError, and then leaves nothing but phases that have ended.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own, of reading and writing files
    check_reference(settings.base, "--base")
    check_reference(settings.large, "--large")
    base = BaseModel(model_source(settings.base))
    data = read_data(settings)
    template = settings.prompt_template
    if template is None:
        template = template_for(data.training, base.tokenizer)
    max_length = min(settings.max_length or base.context_length, base.context_length)
    examples = encode_examples(data.training, base.tokenizer, template, max_length)
    encode_examples(data.held_out, base.tokenizer, template, max_length)  # what is too long is told before the training
    device = pick_device()
    if device.type == "cpu":
        keep_freed_memory()
    base.check_memory(settings, max(example.length for example in examples), device)
    with open_work_folder(settings, data.digest) as work:
        with _memory_errors(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)  # TRL and PEFT: the old name
            models = _train(PhaseRunner(base, settings, device, work), settings, examples)
        return _finish(PairOutput(settings, base, template), models, data, work)


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Turns the errors of torch's allocators, of which the CPU's is a RuntimeError, into ConfigurationErrors."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or _NO_MEMORY.search(str(error)):
            raise ConfigurationError(
                "not enough memory for this training. Use --lora, a smaller --batch-size or shorter answers."
            ) from None
        raise


def _train(runner: PhaseRunner, settings: TrainingSettings, examples: Sequence[Example]) -> tuple[Path, Path | None]:
    """Runs the phases. Returns the folders of the tuned and the untuned model, None where that is the base."""
    start = None
    if settings.adapt_epochs:
        start = runner.run(_phase(ADAPT, "sft", examples, settings), None)
    if settings.method == "dpo":
        return runner.run(_phase(TUNED, "dpo", examples, settings), start), start
    good, bad = ([e for e in examples if e.answer.good is wanted] for wanted in (True, False))
    phase = _phase(TUNED, "sft", good, settings)
    tuned = runner.run(phase, start)
    if not bad:
        return tuned, start
    if max(len(good), len(bad)) > _UNBALANCED * min(len(good), len(bad)):
        say(
            f"warning: {len(good)} good and {len(bad)} bad answers: both models get {phase.steps} steps, so that "
            f"untuned sees each bad answer {phase.steps * settings.batch_size / len(bad):.1f} times. Data with "
            "about as many of each makes better pairs."
        )
    return tuned, runner.run(Phase(UNTUNED, "sft", bad, phase.steps, phase.learning_rate), start)


def _phase(name: str, method: Method, examples: Sequence[Example], settings: TrainingSettings) -> Phase:
    epochs, learning_rate = settings.phases[name]
    rows = len(examples) // 2 if method == "dpo" else len(examples)
    return Phase(name, method, examples, math.ceil(epochs * rows / settings.batch_size), learning_rate)


def _finish(output: PairOutput, models: tuple[Path, Path | None], data: TrainingData, work: Path) -> PairCheck | None:
    """Writes the pair's files, with the figures of its check, and moves them out of the work folder."""
    done = work / "done"
    shutil.rmtree(done, ignore_errors=True)
    done.mkdir()
    output.write_models(done, *models)
    check = None
    if data.held_out:
        say(f"checking the pair on {len(data.held_out)} answers that it has not seen")
        check = asyncio.run(check_pair("pair", output.pair(done), data.held_out, WorkersConfig(dtype="float32")))
    output.write_texts(done, data, check)
    for path in done.iterdir():
        target = output.settings.out / path.name
        if target.is_dir():  # of a run that was stopped just here
            shutil.rmtree(target)
        path.rename(target)
    return check
