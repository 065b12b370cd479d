"""A stand-in for CUDA graphs on the CPU: records the operations of a call and replays them on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READS = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::equal")  # for which the host waits


class RecordedGraphs:
    """As a graph, a replay sees what is in the tensors that the call used, and nothing that Python has decided since.

    It writes its results into the tensors of the capture. Reading a value fails the capture.
    """

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0

    def __call__(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self.captures += 1
        run()
        with _Recorder() as recorder:
            output = run()

        def replay() -> torch.Tensor:
            self.replays += 1
            recorder.replay()
            return output

        return replay


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]] = []

    def __torch_dispatch__(
        self, operation: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if operation._schema.name in _READS:
            raise RuntimeError("operation not permitted when stream is capturing")
        outputs = operation(*args, **(kwargs or {}))
        self._calls.append((operation, args, kwargs or {}, tree_leaves(outputs)))
        return outputs

    def replay(self) -> None:
        for operation, args, kwargs, outputs in self._calls:
            for old, new in zip(outputs, tree_leaves(operation(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and _storage(old) != _storage(new):  # else a view, or written in place
                    old.copy_(new)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
