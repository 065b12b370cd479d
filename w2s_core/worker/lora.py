"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685): models that share their base's weights, with changes of low rank.

The base and its adapters are one module tree, whose adapted layers hold the changes of all adapters. Before a forward
the tree is told which rows belong to which model, so that one forward can have rows of several.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, FiniteFloat, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from w2s_core.errors import ConfigurationError
from w2s_core.pool.specs import AdapterSpec

N = TypeVar("N", int, float)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<matrix>[AB])\.weight")
_USED = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"}
# These say where the change comes from or is; the names of the tensors say that, too. `fan_in_fan_out` is about the
# base's weights, not the adapter's.
_DESCRIPTIVE = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "task_type"),
    *("exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform", "target_modules"),
    *("corda_config", "eva_config", "loftq_config", "lora_dropout", "lora_ga_config", "runtime_config"),
    *("megatron_core", "qalora_group_size"),
}
_MATRIX = 2  # dimensions
_NEUTRAL: tuple[Any, ...] = (None, False, "", "none", "main", [], {})
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")  # other initializations change the base's weights


@dataclass(frozen=True, slots=True)
class LoRAAdapter:
    """An adapter's matrices by the name of the layer that they change: A (r, inputs) and B (outputs, r), on the CPU.

    B is multiplied by the adapter's scaling, α/r.
    """

    spec: AdapterSpec
    layers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class RowsError(Exception):
    """A layer's inputs are not the forward's rows, so that it cannot tell which adapter changes which of them."""


class AdapterRows:
    """Which rows of a layer's inputs belong to which adapter in the running forward. Many layers share one."""

    def __init__(self) -> None:
        self.ranges: list[tuple[str, slice]] = []  # rows of the base are in none
        self.count: int | None = None  # of all rows; None if they are one model's, however many a layer gets

    def assign(self, models: Sequence[tuple[str | None, int]]) -> None:
        """Assigns the rows, in order, to `models`: an adapter's name (None: the base) and its number of rows, each."""
        several, first = len(models) > 1, 0
        self.ranges = []
        for adapter, rows in models:
            if adapter is not None:
                self.ranges.append((adapter, slice(first, first + rows) if several else slice(None)))
            first += rows
        self.count = first if several else None


class LoRALinear(torch.nn.Module):
    """A linear layer plus B·A of each row's adapter: `inputs` (…, inputs) become base(inputs) + (inputs Aᵀ) Bᵀ.

    `changes` are Aᵀ (inputs, r) and Bᵀ (r, outputs) by the adapter's name.
    """

    def __init__(self, base: torch.nn.Module, rows: AdapterRows) -> None:
        super().__init__()
        self.base = base
        self.changes: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._rows = rows

    @property
    def weight(self) -> Any:
        """The base layer's weight, whose dtype and device some models look at."""
        return self.base.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.base(inputs)
        inputs = inputs.flatten(0, -2)
        if self._rows.count not in (None, len(inputs)):
            raise RowsError
        changed = outputs.view(len(inputs), outputs.shape[-1])
        for adapter, rows in self._rows.ranges:
            if adapter in self.changes:
                a, b = self.changes[adapter]
                changed[rows].addmm_(inputs[rows].mm(a), b)
        return outputs


class SharedBase:
    """A base model and the adapters that have been added to it, if any. `model` runs as the base or as any of them."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.adapted = False  # whether it has adapters
        self.reads_row_by_row = True  # until a forward of several models shows that a layer does not
        self._tokens, self._logits = AdapterRows(), AdapterRows()

    def add(self, adapter: LoRAAdapter, source: str) -> str:
        """Adds an adapter. Returns the name by which `assign_rows` knows it. `source` is the base's, for messages.

        Raises ConfigurationError where the adapter's layers are not those of the base.
        """
        name = adapter.spec.folder
        self.adapted = True
        for layer, (a, b) in adapter.layers.items():
            changed = _linear_layer(self.model, layer, adapter, (len(b), a.shape[1]), source)
            if not isinstance(changed, LoRALinear):
                head = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
                rows = self._logits if changed is head else self._tokens
                parent, _, last = layer.rpartition(".")
                changed = LoRALinear(changed, rows)
                setattr(self.model.get_submodule(parent), last, changed)
            device, dtype = _device(changed.base), self.model.dtype
            changed.changes[name] = a.to(device, dtype).t(), b.to(device, dtype).t().contiguous()
        return name

    def assign_rows(self, models: Sequence[tuple[str | None, int, int]]) -> None:
        """Says what the next forward's rows are: of each model its adapter (None: the base), tokens and logits."""
        self._tokens.assign([(adapter, tokens) for adapter, tokens, _ in models])
        self._logits.assign([(adapter, logits) for adapter, _, logits in models])


def read_adapter(spec: AdapterSpec) -> LoRAAdapter:
    """Reads an adapter in PEFT's format. Raises ConfigurationError where it is not plain LoRA of linear layers."""
    folder = Path(spec.folder)
    try:
        config = dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise ConfigurationError(f"{spec.key}: the adapter {folder} cannot be read: {error}") from None
    _check_config(spec, config)
    matrices = _matrices(spec, tensors)
    try:
        scaling_of = _Scaling(**config).rank_and_scaling
        scalings = {layer: scaling_of(layer) for layer in matrices}
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise ConfigurationError(f"{spec.key}: the adapter {folder}: {CONFIG}: {key}: {problem['msg']}.") from None
    except re.error as error:
        raise ConfigurationError(
            f"{spec.key}: the adapter {folder}: {CONFIG}: a pattern of layers is no regular expression: {error}."
        ) from None
    layers = {}
    for layer, pair in matrices.items():
        rank, scaling = scalings[layer]
        if not pair["A"].shape[0] == pair["B"].shape[1] == rank:
            raise ConfigurationError(
                f"{spec.key}: the adapter {folder} has matrices of rank {pair['A'].shape[0]} for `{layer}`, and "
                f"{CONFIG} says {rank}."
            )
        layers[layer] = pair["A"], pair["B"] * scaling
    return LoRAAdapter(spec, layers)


def _matrices(spec: AdapterSpec, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The matrices "A" and "B" of every layer, in float32."""
    matrices: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if (match := _TENSOR.fullmatch(name)) is None:
            raise _unsupported(spec, f"the tensor `{name}`")
        if tensor.ndim != _MATRIX:
            raise _unsupported(spec, f"the tensor `{name}` of {tensor.ndim} dimensions")
        matrices.setdefault(match["layer"], {})[match["matrix"]] = tensor.float()
    if not matrices or any(len(pair) < 2 for pair in matrices.values()):
        raise ConfigurationError(f"{spec.key}: {spec.folder}/{WEIGHTS} does not have both matrices of every layer.")
    return matrices


def _linear_layer(
    model: PreTrainedModel, layer: str, adapter: LoRAAdapter, own: tuple[int, int], source: str
) -> torch.nn.Module:
    """The layer that the adapter changes by a matrix of size `own`. Raises ConfigurationError where there is none."""
    try:
        changed = model.get_submodule(layer)
        inside = isinstance(model.get_submodule(layer.rpartition(".")[0]), LoRALinear)
    except AttributeError:
        inside = True
    if inside:  # of another adapter's layer, which the base does not have
        raise _misfit(adapter, f"changes `{layer}`, and {source} has no such layer")
    size = _size(changed.base if isinstance(changed, LoRALinear) else changed)
    if size is None:
        kind = f"a {type(changed).__name__} there, not a linear layer"
        raise _misfit(adapter, f"changes `{layer}`, and {source} has {kind}")
    if own != size:
        raise _misfit(
            adapter,
            f"changes `{layer}` of {own[0]} × {own[1]} weights, and that of {source} has {size[0]} × {size[1]}",
        )
    return changed


def _size(layer: torch.nn.Module) -> tuple[int, int] | None:
    """Outputs and inputs of a linear layer, None for another one."""
    if isinstance(layer, Conv1D):  # GPT-2's linear layers, whose weights are transposed
        return layer.nf, layer.nx
    outputs, inputs = getattr(layer, "out_features", None), getattr(layer, "in_features", None)
    return (outputs, inputs) if isinstance(outputs, int) and isinstance(inputs, int) else None


def _device(layer: torch.nn.Module) -> torch.device:
    """The device of a linear layer, whose weights a quantizer may have named otherwise."""
    tensors = [*layer.parameters(), *layer.buffers()]
    return (tensors[0] if tensors else layer.weight).device  # type: ignore[return-value]


def _check_config(spec: AdapterSpec, config: Mapping[str, Any]) -> None:
    """Raises ConfigurationError for what is not plain LoRA, also for keys of a later PEFT that do something."""
    if config.get("peft_type") != "LORA":
        raise _unsupported(spec, f"`peft_type: {config.get('peft_type')}`")
    if (start := config.get("init_lora_weights")) not in _PLAIN_STARTS:
        raise _unsupported(spec, f"`init_lora_weights: {start}`")
    for key, value in config.items():
        if key not in _USED | _DESCRIPTIVE and value not in _NEUTRAL:
            raise _unsupported(spec, f"`{key}: {json.dumps(value)}`")


class _Scaling(BaseModel):
    """The part of an adapter's configuration that decides ranks and scalings, with PEFT's defaults."""

    r: PositiveInt = 8
    lora_alpha: FiniteFloat = 8
    rank_pattern: dict[str, PositiveInt] | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None
    use_rslora: bool | None = None

    def rank_and_scaling(self, layer: str) -> tuple[int, float]:
        """The rank of a layer's change, and the factor of B·A. Raises re.error for a pattern that is none."""
        rank = self._of_layer(layer, self.rank_pattern, self.r)
        alpha = self._of_layer(layer, self.alpha_pattern, self.lora_alpha)
        return rank, alpha / (sqrt(rank) if self.use_rslora else rank)

    @staticmethod
    def _of_layer(layer: str, patterns: Mapping[str, N] | None, default: N) -> N:
        """The first pattern's value that matches the end of the layer's name, as in PEFT."""
        found = (value for end, value in (patterns or {}).items() if re.match(rf"(.*\.)?({end})$", layer))
        return next(found, default)


def _unsupported(spec: AdapterSpec, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{spec.key}: the adapter {spec.folder} has {what}, and only LoRA of linear layers is supported. Merge it into "
        "its base (PEFT's merge_and_unload) and name the folder of the merged model."
    )


def _misfit(adapter: LoRAAdapter, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{adapter.spec.key}: the adapter {adapter.spec.folder} is one of another base. It {what}."
    )
