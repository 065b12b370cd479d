"""Packed weights multiply as plain ones do, for any number of rows, whatever the layout was tuned for."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import FAMILIES, tiny_model
from w2s_core.worker.packing import PackedLinear, can_pack, pack_linears

needs_mkl = pytest.mark.skipif(not can_pack(torch.nn.Linear(1, 1)), reason="this build of torch cannot pack")


@needs_mkl
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(0, 48), (1, 0, 48), (48,), (1, 1, 48), (2, 3, 48), (16, 48), (1, 64, 48), (257, 48)]
)
def test_products_are_those_of_the_linear(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(48, 130, bias=bias)
    inputs = torch.randn(shape)
    with torch.inference_mode():
        expected, packed = linear(inputs), PackedLinear(linear)(inputs)
    assert packed.shape == expected.shape
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-5)


@needs_mkl
def test_a_strided_input_is_read_as_it_is_meant() -> None:
    linear = torch.nn.Linear(48, 130)
    inputs = torch.randn(48, 5).t()
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(inputs), linear(inputs), rtol=1e-5, atol=1e-5)


@needs_mkl
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_keeps_its_logits_and_its_embeddings(family: str) -> None:
    model, packed = tiny_model(family), tiny_model(family)
    pack_linears(packed)
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    tokens = torch.arange(5, 25)[None]
    with torch.inference_mode():
        torch.testing.assert_close(packed(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)


@needs_mkl
def test_a_model_that_reads_its_weights_gets_no_numbers() -> None:
    """Its logits are then refused, where those of other weights would pass for an answer."""
    packed = PackedLinear(torch.nn.Linear(48, 130))
    assert packed.weight.shape == (130, 48)
    assert torch.nn.functional.linear(torch.ones(1, 48), packed.weight).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_stay_as_they_are(dtype: torch.dtype) -> None:
    assert not can_pack(torch.nn.Linear(2, 2).to(dtype))
