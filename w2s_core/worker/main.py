"""A worker process: loads its models, then receives, runs and reports until its parent goes away.

Started as `python -m w2s_core.worker.main FD`, where FD is a socket to the parent; the first message is a WorkerSpec.
"""

from __future__ import annotations

import gc
import sys

if __name__ == "__main__":
    # What torch and transformers make on import stays. To search it for garbage, again and again, took a seventh of a
    # worker's start.
    gc.disable()

from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection

import torch
from llguidance import LLTokenizer

from w2s_core.pool.messages import LoadFailed, ModelInfo, Ready, WorkerCommand, WorkerSpec
from w2s_core.structured.grammar_compiling import new_tokenizer
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.worker.grammar_masks import GrammarEngine
from w2s_core.worker.loading import load_models
from w2s_core.worker.models import WorkerModels


def main(fd: int) -> None:
    """Returns when the parent closes its end."""
    parent = Connection(fd)
    try:
        scheduler = _load(parent)
        if scheduler is not None:
            run(parent, scheduler)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # nobody is there to work for


def run(parent: Connection, scheduler: WorkerModels) -> None:
    """The loop: take what has come, run a turn, tell what came of it. Raises EOFError when the parent is gone."""
    while True:
        for order in _arrived(parent, wait=scheduler.idle):
            for answer in scheduler.take(order):
                parent.send(answer)
        for outcome in scheduler.turn():
            parent.send(outcome)


def _arrived(parent: Connection, *, wait: bool) -> Iterator[WorkerCommand]:
    if wait:
        yield parent.recv()
    while parent.poll():
        yield parent.recv()


def _load(parent: Connection) -> WorkerModels | None:
    spec: WorkerSpec = parent.recv()
    if spec.threads:
        torch.set_num_threads(spec.threads)
    try:
        models = load_models(spec)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        parent.send(LoadFailed(f"{type(error).__name__}: {error}"))
        return None
    parent.send(Ready({name: info for name, (_, info) in models.items()}))
    grammars = {
        name: GrammarEngine(partial(_grammar_tokenizer, spec.models[name].source, info))
        for name, (_, info) in models.items()
    }
    return WorkerModels(models, grammars)


def _grammar_tokenizer(source: str, info: ModelInfo) -> LLTokenizer:
    tokenizer = HFTokenizer(source)
    return new_tokenizer(tokenizer.tokenization, sorted(info.eos), max(info.vocabulary, tokenizer.size))


if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    main(int(sys.argv[1]))
