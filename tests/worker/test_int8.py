"""int8 products: close to those of the layer, and the same bit for bit in any batch."""

from __future__ import annotations

from dataclasses import replace
from math import exp, inf, nan
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.prompts import story
from tests.tiny import FAMILIES, save_tiny, tiny_model
from tests.vnni import vnni
from w2s_core.demo.models import PREFIX, SMOLLM2, resolve
from w2s_core.pool.specs import ModelSpec, WorkerSpec
from w2s_core.worker.int8 import Int8Linear, can_multiply, quantize_linears
from w2s_core.worker.joined_linears import join_linears
from w2s_core.worker.loading import load_models, pick_dtype

__all__ = ["vnni"]  # a fixture


def layer(inputs: int = 96, outputs: int = 130, *, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(inputs, outputs, bias=bias)


@torch.inference_mode()
def error(precise: bool, values: torch.Tensor, bias: bool = True) -> float:
    """The error of the products, root mean square, as a share of the products."""
    exact = layer(bias=bias)
    expected, rounded = exact(values), Int8Linear(exact, precise=precise)(values)
    return float((rounded - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("precise", "most"), [(False, 0.012), (True, 0.008)])
def test_products_are_those_of_the_layer_up_to_rounding(precise: bool, most: float, bias: bool) -> None:
    assert 0.001 < error(precise, torch.randn(4, 16, 96), bias) < most


def test_an_outlier_costs_the_others_their_digits_unless_rows_are_precise() -> None:
    values = torch.randn(64, 96)
    values[:, 5] = 300.0
    assert error(False, values) > 4 * error(True, values)


@given(st.integers(1, 70), st.data(), st.booleans())
def test_a_row_is_the_same_to_the_last_bit_in_any_batch(rows: int, data: st.DataObject, precise: bool) -> None:
    rounded = Int8Linear(layer(), precise=precise)
    torch.manual_seed(rows)
    values = torch.randn(rows, 96) * torch.logspace(-3, 3, rows)[:, None]
    first = data.draw(st.integers(0, rows - 1))
    last = data.draw(st.integers(first + 1, rows))
    with torch.inference_mode():
        assert torch.equal(rounded(values)[first:last], rounded(values[first:last]))


@pytest.mark.parametrize("shape", [(0, 96), (1, 0, 96), (96,), (1, 1, 96), (2, 3, 96)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shape_and_type_are_those_of_the_layer(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    exact = layer().to(dtype)
    outputs = Int8Linear(exact, precise=True)(torch.zeros(shape, dtype=dtype))
    assert (outputs.shape, outputs.dtype) == ((*shape[:-1], 130), dtype)
    assert torch.equal(outputs, exact.bias.expand_as(outputs))


@pytest.mark.parametrize("precise", [True, False])
@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_an_overflow_stays_one(value: float, precise: bool) -> None:
    """Else the worker would not notice it, and sample from garbage."""
    values = torch.ones(2, 96)
    values[1, 7] = value
    outputs = Int8Linear(layer(), precise=precise)(values)
    assert outputs[0].isfinite().all()
    assert not outputs[1].isfinite().any()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_keeps_its_opinions_and_its_embeddings(family: str) -> None:
    model, rounded = tiny_model(family), tiny_model(family)
    join_linears(rounded)
    quantize_linears(rounded)
    assert not [module for module in rounded.modules() if type(module) is torch.nn.Linear]
    assert torch.equal(rounded.get_input_embeddings().weight, model.get_input_embeddings().weight)
    tokens = torch.arange(5, 25)[None]
    with torch.inference_mode():
        logits, near = model(tokens).logits.flatten(), rounded(tokens).logits.flatten()
    assert torch.corrcoef(torch.stack([logits, near]))[0, 1] > 0.995


def test_the_perplexity_of_a_text_rises_by_less_than_two_percent() -> None:
    folder = resolve(PREFIX + SMOLLM2)
    size = 512 if can_multiply(torch.device("cpu")) else 64  # without VNNI a token takes a fifth of a second
    tokens = AutoTokenizer.from_pretrained(folder)(story(), return_tensors="pt").input_ids[:, :size]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    @torch.inference_mode()
    def nats() -> float:
        logits = model(tokens).logits[0, :-1].log_softmax(-1)
        return -float(logits.gather(1, tokens[0, 1:, None]).mean())

    before = nats()
    join_linears(model)
    quantize_linears(model)
    assert exp(nats() - before) < 1.02


@pytest.mark.usefixtures("vnni")
def test_a_worker_loads_what_it_is_told_to_in_float32(tmp_path: Path) -> None:
    """And a model with another quantization from the same folder beside it."""
    save_tiny(tmp_path)
    plain = ModelSpec(str(tmp_path), trust_remote_code=False)
    models = {"m": replace(plain, quantization="int8"), "plain": plain}
    loaded = load_models(WorkerSpec("cpu", "auto", 1, 10**6, models))
    classes = {name: {type(module) for module in runner.base.model.modules()} for name, (runner, _) in loaded.items()}
    assert Int8Linear in classes["m"]
    assert Int8Linear not in classes["plain"]
    own = str(pick_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    assert {name: info.dtype for name, (_, info) in loaded.items()} == {"m": "float32", "plain": own}


def test_a_model_that_reads_its_weights_gets_no_numbers() -> None:
    """Its logits are then refused, where those of other weights would pass for an answer."""
    rounded = Int8Linear(layer(), precise=True)
    assert rounded.weight.shape == (130, 96)
    assert torch.nn.functional.linear(torch.ones(1, 96), rounded.weight).isnan().all()
