"""Entry point of a worker process: loads its models, then handles commands and runs steps until the parent closes.

Started as `python -m w2s_core.worker.main FD`, where FD is a socket to the parent. The first message on it is a
WorkerSpec.
"""

from __future__ import annotations

import gc
import sys

from w2s_core.worker.torchao_warnings import silence_torchao

if __name__ == "__main__":
    silence_torchao()
    # What torch and transformers make on import stays. To search it for garbage, again and again, took a seventh of a
    # worker's start.
    gc.disable()

from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection

import torch
from llguidance import LLTokenizer

from w2s_core.errors import ConfigurationError, UnsupportedModelError
from w2s_core.pool.messages import LoadFailed, Ready, WorkerCommand
from w2s_core.pool.specs import ModelInfo, WorkerSpec
from w2s_core.structured.grammar_compiling import new_tokenizer
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.worker.freed_memory import return_freed_memory
from w2s_core.worker.grammar_masks import GrammarEngine
from w2s_core.worker.loading import load_models
from w2s_core.worker.models import WorkerModels


def main(fd: int) -> None:
    """Runs the worker. Returns when the parent closes its end of the socket or the models cannot be loaded."""
    parent = Connection(fd)
    try:
        models = _load(parent)
        if models is not None:
            run(parent, models)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone


def run(parent: Connection, models: WorkerModels) -> None:
    """The worker's loop: handle the commands that have arrived, run a step, send its outcomes.

    Raises EOFError when the parent is gone.
    """
    while True:
        for command in _receive_commands(parent, wait=models.idle):
            for reply in models.handle(command):
                parent.send(reply)
        for outcome in models.step():
            parent.send(outcome)


def _receive_commands(parent: Connection, *, wait: bool) -> Iterator[WorkerCommand]:
    """The commands that have arrived; with `wait`, waits for the first. A message is a list of them."""
    if wait:
        yield from parent.recv()
    while parent.poll():
        yield from parent.recv()


def _load(parent: Connection) -> WorkerModels | None:
    """Receives the WorkerSpec, loads its models and sends Ready. Sends LoadFailed and returns None if it cannot."""
    spec: WorkerSpec = parent.recv()
    if spec.threads:
        torch.set_num_threads(spec.threads)
    try:
        models = load_models(spec)
    except ConfigurationError as error:
        parent.send(LoadFailed(str(error), unsupported=isinstance(error, UnsupportedModelError)))
        return None
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        parent.send(LoadFailed(f"{type(error).__name__}: {error}"))
        return None
    return_freed_memory()
    parent.send(Ready({name: info for name, (_, info) in models.items()}))
    grammars = {
        name: GrammarEngine(partial(_grammar_tokenizer, spec.models[name].source, info))
        for name, (_, info) in models.items()
    }
    return WorkerModels(models, grammars)


def _grammar_tokenizer(source: str, info: ModelInfo) -> LLTokenizer:
    tokenizer = HFTokenizer(source)
    return new_tokenizer(tokenizer.tokenizer_json, sorted(info.eos), max(info.vocabulary, tokenizer.size))


if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    main(int(sys.argv[1]))
