"""Layers that read the same inputs are one product, whoever asks for which part of it, and in whatever order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import FAMILIES, tiny_model
from w2s_core.worker.joined_linears import JoinedLinears, LinearPart, join_linears

WITHOUT = {"gpt2"}  # has one layer for Q, K and V
BIASES = (True, False, True)


def layers() -> list[torch.nn.Linear]:
    torch.manual_seed(0)
    return [torch.nn.Linear(6, outputs, bias=bias) for outputs, bias in zip((5, 3, 4), BIASES, strict=True)]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_keeps_its_logits(family: str) -> None:
    model, joined = tiny_model(family), tiny_model(family)
    join_linears(joined)
    parts = [module for module in joined.modules() if isinstance(module, LinearPart)]
    assert len(parts) == (0 if family in WITHOUT else 5 * model.config.num_hidden_layers)
    tokens = torch.arange(5, 25)[None]
    with torch.inference_mode():
        torch.testing.assert_close(joined(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=12))
def test_parts_are_taken_in_any_order_of_any_inputs(asked: list[tuple[int, int]]) -> None:
    own = layers()
    parts = [LinearPart(JoinedLinears(own), 0)]
    parts += [LinearPart(parts[0].joined, index) for index in (1, 2)]
    inputs = torch.randn(2, 1, 4, 6)
    with torch.inference_mode():
        for part, which in asked:
            taken = parts[part](inputs[which])
            torch.testing.assert_close(taken, own[part](inputs[which]))
            taken.zero_()  # whoever has a part may change it, as an adapter does


def test_one_product_serves_all_parts_and_is_then_forgotten() -> None:
    joined = JoinedLinears(layers())
    products: list[torch.Tensor] = []
    joined.linear.register_forward_hook(lambda _module, _inputs, outputs: products.append(outputs))
    inputs = torch.randn(1, 4, 6)
    for part in range(3):
        joined.take(part, inputs)
    assert len(products) == 1
    assert joined._product.inputs is None
    assert not joined._product.parts


def test_a_part_shows_the_size_and_the_weights_of_its_layer() -> None:
    own = layers()
    part = LinearPart(JoinedLinears(own), 1)
    assert (part.in_features, part.out_features) == (6, 3)
    assert torch.equal(part.weight, own[1].weight)


def test_layers_of_other_inputs_or_of_another_class_stay() -> None:
    class Other(torch.nn.Linear):
        pass

    module = torch.nn.Module()
    module.gate_proj, module.up_proj = torch.nn.Linear(6, 4), torch.nn.Linear(5, 4)
    module.q_proj, module.k_proj, module.v_proj = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4), Other(6, 4)
    before = dict(module.named_children())
    join_linears(module)
    assert dict(module.named_children()) == before
