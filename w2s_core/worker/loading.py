"""Model loading: from a folder or hub id to a ModelRunner with its KV cache on a device."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from w2s_core.errors import ConfigurationError
from w2s_core.pool.specs import ModelInfo, ModelSpec, RewardHead, WorkerSpec
from w2s_core.worker.attention import TREE_ATTENTION
from w2s_core.worker.batch import Batch
from w2s_core.worker.cuda_graphs import Capture, graph_capture
from w2s_core.worker.device_plan import send_inputs
from w2s_core.worker.int8 import can_multiply, quantize_linears
from w2s_core.worker.joined_linears import join_linears
from w2s_core.worker.kv_cache import KVCache
from w2s_core.worker.lora import SharedBase, read_adapter
from w2s_core.worker.model_placement import check_devices, place
from w2s_core.worker.model_runner import ModelRunner
from w2s_core.worker.packing import can_pack, pack_linears
from w2s_core.worker.quantized_checkpoints import (
    check_all_is_read,
    check_quantization,
    is_quantized,
    naming_quantization,
)
from w2s_core.worker.reward_model import load_classifier, reward_model
from w2s_core.worker.token_tree import TokenTree

_CPU_SHARE = 0.1  # of the machine's memory, per model, with kv_cache_gb: auto
_GPU_SHARE = 0.8  # of the GPU memory free after loading, for all models together


def load_models(spec: WorkerSpec) -> dict[str, tuple[ModelRunner, ModelInfo]]:
    """Loads every model of the spec.

    Raises transformers' errors, mostly OSError or ValueError, and ConfigurationError if one fails. What can be told of
    a model without its weights is told before any are read.
    """
    devices = [torch.device(name) for name in spec.device.split("+")]
    device = devices[0]  # where a step's inputs and logits are
    _check_int8(spec, device)
    check_devices(devices)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else kernels that models bring along run on the first GPU
    methods = {name: check_quantization(model, devices) for name, model in spec.models.items()}
    adapters = {name: read_adapter(model.adapter) for name, model in spec.models.items() if model.adapter}
    bases: dict[tuple[str, RewardHead | None, str], SharedBase] = {}  # a base and its adapters share its weights
    models: dict[str, tuple[SharedBase, str | None]] = {}
    for name, model in spec.models.items():
        source = os.path.realpath(model.source) if Path(model.source).is_dir() else model.source
        key = source, model.reward, model.quantization
        if key not in bases:
            with naming_quantization(model, methods[name]):
                bases[key] = SharedBase(_load(model, _dtype(spec, model, device), devices, methods[name]))
        adapter = bases[key].add(adapters[name], model.source) if name in adapters else None
        models[name] = bases[key], adapter
    cache_bytes = spec.kv_cache_bytes or _auto_cache_bytes(devices, len(models))
    runners = {}
    for (name, (base, adapter)), own in zip(models.items(), spec.models.values(), strict=True):
        make = partial(make_runner, base, device, cache_bytes, tokens=own.tokens, eos=own.eos, reward=own.reward)
        if spec.cuda_graphs:
            label = own.key or own.source
            make = partial(make, capture=graph_capture(label, devices, adapted=base.adapted), name=label)
        with naming_quantization(own, methods[name]):
            runners[name] = make(adapter=adapter)
    return runners


def _check_int8(spec: WorkerSpec, device: torch.device) -> None:
    """Raises ConfigurationError, which names the first model's key, where the device cannot do int8."""
    asked = next((model for model in spec.models.values() if model.quantization == "int8"), None)
    if asked is not None and not can_multiply(device):
        raise ConfigurationError(
            f"{asked.key or asked.source}: quantization: int8 needs a CPU with VNNI instructions, and {spec.device} is "
            "none. Leave it out."
        )


def _dtype(spec: WorkerSpec, model: ModelSpec, device: torch.device) -> torch.dtype:
    """The dtype of what is not quantized: with int8, auto is float32."""
    int8 = model.quantization == "int8" and spec.dtype == "auto"
    return torch.float32 if int8 else pick_dtype(spec.dtype, device)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name. "auto" is bfloat16 on GPUs that support it and on CPUs with AMX, else float32.

    Elsewhere float32 is as fast, and exact.
    """
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def make_runner(
    model: PreTrainedModel | SharedBase,
    device: torch.device,
    cache_bytes: int | Mapping[torch.device, int],
    *,
    tokens: int | None = None,
    eos: int | None = None,
    reward: RewardHead | None = None,
    adapter: str | None = None,
    capture: Capture | None = None,
    name: str = "",
) -> tuple[ModelRunner, ModelInfo]:
    """Gives the model tree attention and a KV cache of at most `cache_bytes`, in all or of its layers on each device.

    `tokens`, `eos` and `reward`: see `ModelSpec`. `adapter`, `capture` and `name`: see `ModelRunner`. The bytes
    of KV per token and the number of logits are measured by running one token.
    """
    base = model if isinstance(model, SharedBase) else SharedBase(model)
    model = base.model
    model.set_attn_implementation(TREE_ATTENTION)
    model.train(mode=False)
    # Else some models (GPT-2) look for padding in every batch, which waits for the device.
    model.config.pad_token_id = None
    module = model if reward is None else reward_model(model, reward)
    runner = partial(ModelRunner, module, device=device, base=base, adapter=adapter)
    measured = KVCache(128)
    logits = _run_one_token(runner(cache=measured))
    vocabulary = _vocabulary(model, logits if reward is None else None, tokens)
    info = ModelInfo(
        context_length=context_length(model.config),
        vocabulary=vocabulary,
        eos=frozenset(token for token in _eos(model, eos) if token < vocabulary),
        kv_slots=max(1, _slots(measured, cache_bytes)),
        kv_bytes_per_token=measured.bytes_per_token(),
        dtype=str(model.dtype).removeprefix("torch."),
    )
    kept = vocabulary if reward is None else None
    made = runner(cache=KVCache(info.kv_slots), vocabulary=kept, capture=capture, name=name)
    _run_one_token(made)  # a cache too large for the device fails here, not in a request
    return made, info


def _load(spec: ModelSpec, dtype: torch.dtype, devices: Sequence[torch.device], method: str | None) -> PreTrainedModel:
    """Loads a model, quantized by `method` if it is, onto its devices."""
    device = devices[0]
    placed = place(spec, dtype, devices, quantized=method is not None)
    options = {} if placed is None or (device.type == "cpu" and method is None) else {"device_map": placed}
    if spec.reward is not None:
        model, info = load_classifier(spec, dtype, **options)
    else:
        loaded_and_info: Any = AutoModelForCausalLM.from_pretrained(
            spec.source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=spec.trust_remote_code,
            output_loading_info=True,
            **options,
        )
        model, info = loaded_and_info
    if getattr(model, "_hf_peft_config_loaded", False):  # transformers does that where PEFT is installed
        raise ConfigurationError(f"{spec.source}: is or has an adapter. Write {{model: BASE, adapter: FOLDER}}.")
    if method is not None:
        check_all_is_read(spec, method, model, info["unexpected_keys"])
    if placed is not None and len(devices) > 1:
        send_inputs(model, placed)
    loaded = _prepare_layers(model, spec, dtype, device, moved=bool(options))
    if method is not None:  # some methods unpack weights in the first forward: before free memory is measured
        with torch.inference_mode():
            loaded(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    return loaded


def _prepare_layers(
    model: PreTrainedModel, spec: ModelSpec, dtype: torch.dtype, device: torch.device, *, moved: bool
) -> PreTrainedModel:
    """Moves the model unless it is where it belongs, and stores plain weights as they are multiplied fastest."""
    if is_quantized(model):
        return model
    loaded: PreTrainedModel = model.to(dtype) if moved else model.to(device)  # type: ignore[arg-type]
    layers = loaded if spec.reward is None else loaded.base_model  # not the head, which has a few outputs
    join_linears(layers)
    if spec.quantization == "int8":
        quantize_linears(layers)
    if can_pack(layers):
        pack_linears(layers)
    elif device.type == "cpu":
        _transpose(layers)
    return loaded


def _transpose(model: torch.nn.Module) -> None:
    """Stores weight matrices transposed: products of 16 to 56 rows are a quarter faster, others as fast."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and id(module.weight) not in embeddings:
            module.weight.data = module.weight.data.t().contiguous().t()


def _run_one_token(runner: ModelRunner) -> int:
    """Runs one token, which creates the cache's layers. Returns the number of logits."""
    batch = Batch(1)
    tree = TokenTree(runner.cache, (0,))
    batch.request_logits(tree, tree.root)
    logits = runner.forward(batch)
    tree.close()
    return logits.shape[1]


def _slots(cache: KVCache, room: int | Mapping[torch.device, int]) -> int:
    """The slots for which there is room, in all or on each device."""
    if isinstance(room, int):
        return room // cache.bytes_per_token()
    return min(room[device] // size for device, size in cache.bytes_per_token_by_device().items())


def context_length(config: PretrainedConfig) -> int:
    """The model's context length in tokens: `max_position_embeddings`, in GPT-2's configuration `n_positions`.

    Raises ValueError where the configuration does not state it.
    """
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        length = getattr(config, name, None)
        if isinstance(length, int):
            return length
    raise ValueError(f"{config.name_or_path}: the model's configuration does not state its context length")


def _vocabulary(model: PreTrainedModel, logits: int | None, tokens: int | None) -> int:
    """The ids that the model can read and draw and its tokenizer can decode: the smallest of three sizes.

    They often differ, because embedding and logits are padded to a round number, or tokens were added to the tokenizer
    alone. `logits` is None for a reward model, which draws none.
    """
    embedding = model.get_input_embeddings()
    assert isinstance(embedding.weight, torch.Tensor)
    embeddings = len(embedding.weight)
    return min(size for size in (logits, embeddings, tokens) if size is not None)


def _eos(model: PreTrainedModel, tokenizer_eos: int | None) -> set[int]:
    """The token ids that end an answer: those of the generation config, else of the model config, and the tokenizer's.

    A chat model's generation config often names only `<|endoftext|>`, while its turns end with the tokenizer's
    `<|im_end|>`. vLLM stops at both, too.
    """
    own_config = getattr(model, "generation_config", None)  # a reward model has none
    ids = own_config.eos_token_id if own_config else None
    ids = model.config.eos_token_id if ids is None else ids
    own = set() if ids is None else {ids} if isinstance(ids, int) else set(ids)
    return own if tokenizer_eos is None else own | {tokenizer_eos}


def _auto_cache_bytes(devices: Sequence[torch.device], models: int) -> int | dict[torch.device, int]:
    """The KV cache's bytes per model with kv_cache_gb: auto."""
    if devices[0].type == "cuda":
        free = {device: torch.cuda.mem_get_info(device)[0] for device in devices}
        room = {device: int(size * _GPU_SHARE) // models for device, size in free.items()}
        return room if len(devices) > 1 else room[devices[0]]
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _CPU_SHARE)
