"""A model over several devices: the plan by properties, its forwards equal to one device's, and no tensor out of place.

Two CPU "devices" are one to torch, so what is on which is shown with tensors that only claim to be on two others:
torch's fake tensors compute shapes and devices, and raise an error where those of two devices meet. "lazy" is a kind of
device for which that needs no build of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.nn import Parameter
from transformers import PreTrainedModel

from tests.adapters import random_adapter
from tests.fakes import answer
from tests.tiny import FAMILIES, save_tiny, save_tiny_classifier, tiny_classifier, tiny_model
from tests.vnni import vnni
from tests.worker.test_engine_on_workers import ASK, assert_nothing_is_held, pool_of
from tests.worker.test_lora import logits
from tests.worker.test_reward_model import HEAD
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig
from w2s_core.errors import UnsupportedModelError
from w2s_core.pool.specs import ModelSpec, WorkerSpec
from w2s_core.worker.device_plan import NoRoomError, device_map, measure, plan_layers, send_inputs
from w2s_core.worker.joined_linears import LinearPart
from w2s_core.worker.kv_cache import KVCache
from w2s_core.worker.loading import load_models, make_runner
from w2s_core.worker.lora import LoRALinear, SharedBase
from w2s_core.worker.model_placement import check_devices, place

__all__ = ["vnni"]  # a fixture
FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")
FAKE, OTHER = torch.device("lazy:0"), torch.device("lazy:1")
sizes = st.integers(1, 1000)


def largest_share(plan: list[int], layers: list[int], others: int, free: list[int]) -> float:
    used = [others, *[0] * (len(free) - 1)]
    for device, size in zip(plan, layers, strict=True):
        used[device] += size
    return max(size / room for size, room in zip(used, free, strict=True))


@given(st.lists(sizes, min_size=1, max_size=6), st.integers(0, 2000), st.lists(sizes, min_size=1, max_size=4))
def test_the_plan_is_the_best_of_all(layers: list[int], others: int, free: list[int]) -> None:
    """Of all in which each device has a range of the layers, in order: those are few enough to try."""
    free = [3 * size for size in free]
    every = [list(plan) for plan in combinations_with_replacement(range(len(free)), len(layers))]
    best = min(largest_share(plan, layers, others, free) for plan in every)
    if best > 1:
        with pytest.raises(NoRoomError):
            plan_layers(layers, others, free)
        return
    plan = plan_layers(layers, others, free)
    assert plan in every
    assert largest_share(plan, layers, others, free) <= best + 1e-6


@given(st.integers(2, 100), st.integers(1, 8))
def test_equal_layers_on_equal_devices_are_spread_evenly(layers: int, devices: int) -> None:
    plan = plan_layers([10] * layers, 0, [10 * layers] * devices)
    counts = [plan.count(device) for device in range(devices)]
    assert max(counts) == -(-layers // devices)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("classifies", [False, True])
def test_the_map_covers_every_weight_once(family: str, classifies: bool) -> None:
    model = tiny_classifier(family) if classifies else tiny_model(family)
    weights = measure(model, 2)
    assert weights is not None
    assert sum(weights.layers) + weights.others == sum(weight.nbytes for weight in model.parameters())
    assert len(weights.layers) == 2
    devices = device_map(model, weights.prefix, [FIRST, SECOND], FIRST)
    for name, _ in (*model.named_parameters(), *model.named_buffers()):
        [own] = [key for key in devices if name == key or name.startswith(f"{key}.")]
        assert devices[own] == (SECOND if name.startswith(f"{weights.prefix}.1.") else FIRST)


def test_quantized_layers_are_as_large_as_the_files_say() -> None:
    model = tiny_model()
    plain, packed = measure(model, 2), measure(model, 2, total=100_000)
    assert plain is not None
    assert packed is not None
    assert packed.others == plain.others
    assert sum(packed.layers) + packed.others == pytest.approx(100_000, abs=2)
    assert measure(model, 7) is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.usefixtures("vnni")
def test_logits_are_those_of_one_device(family: str, quantization: Literal["none", "int8"], tmp_path: Path) -> None:
    """Equal to the bit: the same kernels run."""
    folder = save_tiny(tmp_path / "model", family=family)
    specs = {"m": ModelSpec(str(folder), False, quantization=quantization)}
    one, several = (load_models(WorkerSpec(device, "float32", 1, 10**6, specs)) for device in ("cpu", "cpu:0+cpu:1"))
    (runner, info), (alone, expected) = several["m"], one["m"]
    assert info == expected
    assert torch.equal(logits(runner), logits(alone))
    parts = [sum(isinstance(module, LinearPart) for module in each._model.modules()) for each in (runner, alone)]
    assert parts == [0 if family == "gpt2" else 10] * 2, "layers are joined in either"
    layers = next(module for module in runner._model.modules() if isinstance(module, torch.nn.ModuleList))
    assert all(layer._forward_pre_hooks for layer in layers), "the layers do not send their inputs to their devices"


def test_rewards_are_those_of_one_device(tmp_path: Path) -> None:
    specs = {"m": ModelSpec(str(save_tiny_classifier(tmp_path / "model")), False, reward=HEAD)}
    one, several = (load_models(WorkerSpec(device, "float32", 1, 10**6, specs)) for device in ("cpu", "cpu:0+cpu:1"))
    assert torch.equal(logits(several["m"][0]), logits(one["m"][0]))


@pytest.mark.asyncio(loop_scope="session")
async def test_answers_are_those_of_one_device(config: EngineConfig) -> None:
    requests = [ASK, replace(ASK, model="plain", n=3), replace(ASK, best_of=4)]
    texts = []
    for device in ("cpu", "cpu:0+cpu:1"):
        workers = replace(config.workers, devices=(device,))
        large = {"large": replace(config.large_models["large"], devices=(device,))}
        async with build_engine(replace(config, workers=workers, large_models=large)) as engine:
            assert [worker.spec.device for worker in pool_of(engine).workers] == [device]
            answers = await asyncio.gather(*(answer(engine, request) for request in requests))
            texts.append([[y.text for y in each] for each in answers])
            await assert_nothing_is_held(engine)
    assert texts[0] == texts[1]


@pytest.fixture
def fake_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes every tensor a fake one. What is sent from the host arrives without its values."""
    for module in ("transfer", "attention"):
        sent = f"w2s_core.worker.{module}.to_device"
        monkeypatch.setattr(sent, lambda host, device: torch.empty(host.shape, dtype=host.dtype, device=device))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def spread(family: str, *, classifies: bool = False) -> PreTrainedModel:
    """A model whose second layer claims to be on the other device."""
    model = tiny_classifier(family) if classifies else tiny_model(family)
    weights = measure(model, 2)
    assert weights is not None
    devices = device_map(model, weights.prefix, [FAKE, OTHER], FAKE)
    for name, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for last, tensor in tensors.items():
                if tensor is not None:
                    full = f"{name}.{last}" if name else last
                    [device] = [devices[key] for key in devices if full == key or full.startswith(f"{key}.")]
                    moved = torch.empty(tensor.shape, device=device)
                    tensors[last] = Parameter(moved) if isinstance(tensor, Parameter) else moved
    send_inputs(model, devices)
    if classifies:  # a head in float32 is asked for, which it is; fake weights cannot be converted in place
        model.score.float = lambda: model.score
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("classifies", [False, True])
def test_no_tensors_of_two_devices_meet(family: str, classifies: bool, fake_devices: None) -> None:
    room = {FAKE: 128 * 100, OTHER: 128 * 50}
    model = spread(family, classifies=classifies)
    runner, info = make_runner(model, FAKE, room, reward=HEAD if classifies else None)
    assert logits(runner).device == FAKE
    per_token = runner.cache.bytes_per_token_by_device()
    assert set(per_token) == {FAKE, OTHER}
    assert info.kv_slots == min(room[device] // size for device, size in per_token.items())


@pytest.mark.parametrize("forgets", ["layers", "norm"])
def test_inputs_that_stay_where_they_are_are_found(forgets: str, fake_devices: None) -> None:
    """The check above can fail."""
    model = spread("llama")
    forgetful = model.model.layers[1] if forgets == "layers" else model.model.norm
    forgetful._forward_pre_hooks.clear()
    with pytest.raises(RuntimeError, match=r"lazy:[01].*lazy:[01]"):
        make_runner(model, FAKE, 10**6)


def test_an_adapters_matrices_are_on_their_layers_device(fake_devices: None) -> None:
    base = SharedBase(spread("llama"))
    base.add(random_adapter(base.model, 1), "base")
    matrices = {
        name: a.device
        for name, module in base.model.named_modules()
        if isinstance(module, LoRALinear)
        for a, _ in module.changes.values()
    }
    assert {device for name, device in matrices.items() if ".0." in name} == {FAKE}
    assert {device for name, device in matrices.items() if ".1." in name} == {OTHER}


def test_layers_of_one_shape_have_a_buffer_on_each_device(fake_devices: None) -> None:
    cache = KVCache(16, buffer_slots=2)
    for layer, device in enumerate((FAKE, OTHER)):
        rows = torch.zeros(1, 2, 8, device=device)
        cache.layer(layer, rows, rows)
    assert {key[2] for key in cache._buffers} == {FAKE, OTHER}
    assert cache.bytes_per_token_by_device() == {FAKE: 128, OTHER: 128}


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All devices count: each has room for one of the two layers."""
    folder = save_tiny(tmp_path / "model")
    weights = measure(tiny_model(), 2)
    assert weights is not None
    spec = ModelSpec(str(folder), False, key="large_models.big.model")
    room = {FIRST: weights.others + weights.layers[0], SECOND: weights.layers[1]}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (room[device], 0))
    placed = place(spec, torch.float32, [FIRST, SECOND], quantized=False)
    assert placed is not None
    assert (placed["model.layers.0"], placed["model.layers.1"], placed["lm_head"]) == (FIRST, SECOND, FIRST)
    room[SECOND] -= 1
    message = r"^large_models\.big\.model: the weights of .* take 0\.0 GB, and cuda:0\+cuda:1 have 0\.0 \+ 0\.0 GB free"
    with pytest.raises(UnsupportedModelError, match=message):
        place(spec, torch.float32, [FIRST, SECOND], quantized=False)


def test_a_gpu_that_is_not_there_is_refused_by_name() -> None:
    check_devices([torch.device("cpu")])
    missing = torch.device("cuda", torch.cuda.device_count())
    with pytest.raises(UnsupportedModelError, match=rf"^workers\.devices: there is no {missing} here"):
        check_devices([missing])


def test_the_first_devices_layers_are_not_those_of_a_full_one() -> None:
    """Large embeddings may leave it none; its inputs and logits are still there."""
    model = tiny_model()
    weights = measure(model, 2)
    assert weights is not None
    plan = plan_layers(weights.layers, 10 * sum(weights.layers), [11 * sum(weights.layers)] * 2)
    assert plan == [1, 1]
    devices = device_map(model, weights.prefix, [SECOND, SECOND], FIRST)
    assert devices["model.embed_tokens"] == devices["lm_head"] == FIRST
