"""CUDA graphs: decode steps that are captured once for each shape and replayed, without the launches of their kernels.

A graph holds addresses: of the model's weights, of the KV cache's pools and of its step's buffers. It is valid for as
long as these stay where they are. Pools do (see `kv_cache.py`), buffers are its own, and weights do once a model is
loaded: one that adds an adapter to its base, moves it or replaces a layer must make its `StepGraphs` anew. What Python
decides during the capture is decided for all replays. So a forward that depends on a value on the device, which it can
only learn by waiting, cannot be captured, and that fails the capture.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from w2s_core.worker.batch import Inputs
from w2s_core.worker.kv_cache import KVCache
from w2s_core.worker.static_step import StaticStep, StepShape, step_shape

_log = logging.getLogger(__name__)
_MOST_GRAPHS = 48
_USES_BEFORE = 2  # of a shape, before it is captured: a capture takes as long as a few steps

Forward: TypeAlias = Callable[[Inputs], torch.Tensor]  # logits (M, vocab)
Replay: TypeAlias = Callable[[], torch.Tensor]
Capture: TypeAlias = Callable[[Callable[[], torch.Tensor]], Replay]


class CUDAGraphCapture:
    """Captures calls on one CUDA device. All graphs share their memory, because no two of them run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], torch.Tensor]) -> Replay:
        """Captures `run`. Returns what replays it; the tensor that this returns is overwritten by later replays.

        Raises whatever torch raises where `run` cannot be captured.
        """
        current = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):  # a failed capture would leave torch on it
            run()  # what kernels set up when they first run is no part of a graph
            current.wait_stream(self._stream)
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                output = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay


def graph_capture(name: str, devices: Sequence[torch.device], *, adapted: bool) -> CUDAGraphCapture | None:
    """What captures the steps of a model. None, with a line in the log, for one that has to run without graphs.

    `adapted`: whether its base has adapters, for which Python tells each layer which rows are whose.
    """
    if adapted:
        reason = "it or its base has an adapter"
    elif len(devices) > 1:
        reason = "it is on several devices"
    elif devices[0].type != "cuda":
        reason = f"it is on {devices[0]}"
    else:
        return CUDAGraphCapture(devices[0])
    _log.warning("%s runs without CUDA graphs: %s", name, reason)
    return None


class StepGraphs:
    """The captured steps of one model, which is alone on its device and has no adapters. The least used are dropped."""

    def __init__(
        self, capture: Capture, cache: KVCache, device: torch.device, name: str, most: int = _MOST_GRAPHS
    ) -> None:
        """`name`: the model's, for the log. `most`: graphs that are kept."""
        self._capture: Capture | None = capture
        self._cache = cache
        self._device = device
        self._name = name
        self._most = most
        self._uses: Counter[StepShape] = Counter()
        self._steps: OrderedDict[StepShape, tuple[StaticStep, Replay]] = OrderedDict()  # the last used last

    def run(self, inputs: Inputs, forward: Forward) -> torch.Tensor | None:
        """The logits (M, vocab) of a step, of which no part is overwritten later. None if it must run as it is.

        `forward` runs inputs on the model. A capture that fails is the model's last.
        """
        shape = step_shape(inputs) if self._capture else None
        if shape is None:
            return None
        if shape not in self._steps:
            self._uses[shape] += 1
            if self._uses[shape] <= _USES_BEFORE or not self._add(shape, inputs, forward):
                return None
        self._steps.move_to_end(shape)
        step, replay = self._steps[shape]
        step.fill(inputs)
        return replay()[: len(inputs.logits_indices)].clone()

    def _add(self, shape: StepShape, inputs: Inputs, forward: Forward) -> bool:
        """Captures the step. False if that fails."""
        assert self._capture is not None
        step = StaticStep(shape, self._cache, self._device)
        step.fill(inputs)
        try:
            replay = self._capture(lambda: forward(step.inputs()))
        except Exception as error:  # whatever a model's layers do that cannot be captured
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            _log.warning("%s runs without CUDA graphs: its step could not be captured: %s", self._name, reason)
            self._capture = None
            self._steps.clear()
            return False
        self._steps[shape] = step, replay
        if len(self._steps) > self._most:
            dropped, _ = self._steps.popitem(last=False)
            del self._uses[dropped]
        return True
