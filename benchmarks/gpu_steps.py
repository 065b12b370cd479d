"""Times a GPU's decode steps, by session, with one attention call for all, and captured, beside their floor.

A step is built, run and waited for; drawing is not in it. Its floor is its linear layers alone (see `step_floor`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import torch

from benchmarks.step_floor import Steps
from w2s_core.worker.cuda_graphs import Capture, Replay, StepGraphs
from w2s_core.worker.model_runner import ModelRunner

KINDS = ("by session", "one call", "captured")
HEAD = ("rows", "sessions", "linear layers, ms", *(f"{kind}, ms (÷ layers)" for kind in KINDS))
_WARM_UP = 5


class CountedCapture:
    """Captures as `capture` does, and counts the replays, to tell a step that was replayed from one that was not."""

    def __init__(self, capture: Capture) -> None:
        self.replays = 0
        self._capture = capture

    def __call__(self, run: Callable[[], torch.Tensor]) -> Replay:
        replay = self._capture(run)

        def counted() -> torch.Tensor:
            self.replays += 1
            return replay()

        return counted


def measure(
    runner: ModelRunner, capture: Capture | None, rows: Sequence[int], sessions: Sequence[int], repeats: int
) -> Iterator[tuple[str, ...]]:
    """The table's rows under HEAD: medians of `repeats`. A kind that does not apply to a step has a dash.

    Without a `capture` no step is captured.
    """
    counted = CountedCapture(capture) if capture else None
    for count in rows:
        for number in sessions:
            if count % number == 0:
                yield (str(count), str(number), *_times(runner, counted, count, count // number, repeats))


def _times(
    runner: ModelRunner, capture: CountedCapture | None, rows: int, rows_of_session: int, repeats: int
) -> list[str]:
    steps = Steps(runner, rows, rows_of_session)
    layers = _milliseconds(runner.device, steps.linear_layers(), repeats)
    steps.close()
    cells = [f"{layers:.2f}"]
    for kind in KINDS:
        with _attending(runner, kind, capture):
            steps = Steps(runner, rows, rows_of_session)  # anew, because each step makes the answers longer
            before = capture.replays if capture else 0
            step = _milliseconds(runner.device, steps.run, repeats)
            steps.close()
        replayed = capture is not None and capture.replays - before >= repeats
        cells.append(f"{step:.2f} ({step / layers:.2f})" if kind != "captured" or replayed else "–")
    return cells


@contextmanager
def _attending(runner: ModelRunner, kind: str, capture: CountedCapture | None) -> Iterator[None]:
    """Sets the runner to a kind of step, and back."""
    before = runner.joint, runner.graphs
    runner.joint = kind != "by session"
    runner.graphs = None
    if kind == "captured" and capture is not None:
        runner.graphs = StepGraphs(capture, runner.cache, runner.device, "the model")
    try:
        yield
    finally:
        runner.joint, runner.graphs = before


def _milliseconds(device: torch.device, call: Callable[[], None], repeats: int) -> float:
    """The median time of a call, after a few that warm up."""
    times: list[float] = []
    for _ in range(_WARM_UP + repeats):
        _wait(device)
        started = time.perf_counter()
        call()
        _wait(device)
        times.append(1000 * (time.perf_counter() - started))
    return median(times[_WARM_UP:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
