"""The floor of a decode step: its linear layers alone, on the same inputs, in the same process.

What a step takes beyond them is attention, element-wise operations and the interpreter. Drawing is in neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import click
import torch
from transformers.pytorch_utils import Conv1D

from benchmarks.report import markdown
from w2s_core.demo.models import PREFIX, SMOLLM2, resolve
from w2s_core.pool.specs import ModelSpec, WorkerSpec
from w2s_core.worker.batch import Batch
from w2s_core.worker.int8 import Int8Linear, can_multiply
from w2s_core.worker.loading import load_models
from w2s_core.worker.model_runner import ModelRunner
from w2s_core.worker.packing import PackedLinear
from w2s_core.worker.token_tree import Node, TokenTree

_HEAD = ("rows", "quantization", "step, ms", "its linear layers, ms", "step ÷ layers")
_LINEAR = (PackedLinear, Int8Linear, torch.nn.Linear, Conv1D)
_CACHE_BYTES = 2 * 10**9
_ROWS_OF_SESSION = 16
_PROMPT, _ANSWER = 20, 32  # tokens of each session, and of each row before the first step
_WARM_UP = 3


@dataclass(slots=True)
class Session:
    """A prompt's tree, and the last token of each of its rows."""

    tree: TokenTree
    leaves: list[Node]


class Steps:
    """Decode steps of `rows` plain rows, so many in a session, whose answers differ from the first token on."""

    def __init__(self, runner: ModelRunner, rows: int, rows_of_session: int = _ROWS_OF_SESSION) -> None:
        self._runner = runner
        self._sessions: list[Session] = []
        for first in range(0, rows, rows_of_session):
            tree = TokenTree(runner.cache, tuple(range(1, _PROMPT + 1)))
            self._sessions.append(Session(tree, [tree.root] * min(rows - first, rows_of_session)))
        for _ in range(_ANSWER):
            self.run()

    def run(self) -> None:
        """Runs a step, after which each row has one more token."""
        batch = Batch(10**6)
        for session in self._sessions:
            session.leaves = [leaf.child((leaf.token + row) % 250) for row, leaf in enumerate(session.leaves)]
            for leaf in session.leaves:
                batch.request_logits(session.tree, leaf)
        self._runner.forward(batch)

    def linear_layers(self) -> Callable[[], None]:
        """What runs the linear layers of a step alone, on the inputs that they had in one."""
        calls: list[tuple[torch.nn.Module, torch.Tensor]] = []
        layers = [module for module in self._runner.base.model.modules() if isinstance(module, _LINEAR)]
        hooks = [layer.register_forward_pre_hook(lambda own, args: calls.append((own, args[0]))) for layer in layers]
        self.run()
        for hook in hooks:
            hook.remove()

        @torch.inference_mode()
        def run() -> None:
            for layer, inputs in calls:
                layer(inputs)

        return run

    def close(self) -> None:
        for session in self._sessions:
            session.tree.close()


def measure(model: str, rows: Sequence[int], repeats: int, threads: int) -> list[tuple[str, ...]]:
    """The table's rows: medians of `repeats` in which steps and layers of all quantizations take turns."""
    torch.set_num_threads(threads)
    models = {"none": ModelSpec(model, trust_remote_code=False)}
    if can_multiply(torch.device("cpu")):
        models["int8"] = replace(models["none"], quantization="int8")
    loaded = load_models(WorkerSpec("cpu", "float32", threads, _CACHE_BYTES, models))
    lines: list[tuple[str, ...]] = []
    for count in rows:
        steps = {name: Steps(runner, count) for name, (runner, _) in loaded.items()}
        alone = {name: each.linear_layers() for name, each in steps.items()}
        times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in steps}
        for _ in range(_WARM_UP + repeats):
            for name, each in steps.items():
                times[name][0].append(_milliseconds(each.run))
                times[name][1].append(_milliseconds(alone[name]))
        for name, parts in times.items():
            step, layers = (median(found[_WARM_UP:]) for found in parts)
            ratio = median(a / b for a, b in zip(*(found[_WARM_UP:] for found in parts), strict=True))
            lines.append((str(count), name, f"{step:.1f}", f"{layers:.1f}", f"{ratio:.2f}"))
            steps[name].close()
    return lines


def _milliseconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


@click.command()
@click.option("--rows", multiple=True, type=click.IntRange(min=1), default=(1, 4, 16, 64), show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=15, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--model", default=PREFIX + SMOLLM2, show_default=True, help="A folder, a hub id or demo:NAME.")
def main(rows: tuple[int, ...], repeats: int, threads: int, model: str) -> None:
    """Compare a decode step with its linear layers alone, in float32 and int8."""
    folder = str(resolve(model)) if model.startswith(PREFIX) else model
    click.echo(markdown([_HEAD, *measure(folder, rows, repeats, threads)]))


if __name__ == "__main__":
    main()
