"""Sampling: the distribution of draws, top_k and top_p, and independence of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_core.pool.messages import Sampling
from w2s_core.search.randomness import root_key, successor_key, uniform
from w2s_core.worker.inverse_transform import inverse_transform, inverse_transform_among
from w2s_core.worker.sampling import Draw, draw_tokens


def numbers(n: int) -> list[float]:
    return [uniform(successor_key(root_key(4), 0, i), 0) for i in range(n)]


def reference(logits: torch.Tensor, draw: Sampling) -> torch.Tensor:
    """The probabilities that a row should be drawn from, in float64, one step after the other."""
    scaled = logits.double() / draw.temperature
    if draw.top_k:
        scaled[scaled < scaled.topk(min(draw.top_k, len(scaled))).values[-1]] = float("-inf")
    probabilities = scaled.softmax(0)
    order = probabilities.argsort(descending=True)
    before = probabilities[order].cumsum(0) - probabilities[order]
    probabilities[order[(before >= draw.top_p) & (before > 0)]] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(0.7), Sampling(1, 0.8), Sampling(1.3, 1, 5), Sampling(0.7, 0.9, 12)],
    ids=["plain", "cool", "nucleus", "top-k", "both"],
)
def test_frequencies_are_the_probabilities(sampling: Sampling) -> None:
    """40,000 draws of 30 tokens: chi² with ≤ 29 degrees of freedom exceeds 85 with p < 10⁻⁶."""
    torch.manual_seed(0)
    logits, n = torch.randn(30) * 1.5, 40_000
    draws = [Draw(sampling, u) for u in numbers(n)]
    tokens, _ = draw_tokens(logits.expand(n, 30), draws)
    expected = reference(logits, sampling) * n
    counts = torch.bincount(torch.tensor(tokens), minlength=30).double()
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < 85


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_row_does_not_depend_on_its_neighbours(data: st.DataObject) -> None:
    samplings = st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.5, 1.0]),
        top_p=st.sampled_from([0.3, 0.95, 1.0]),
        top_k=st.sampled_from([0, 1, 7, 2000]),
    )
    kinds = st.builds(Draw, samplings, number=st.floats(0, 1, exclude_max=True))
    draws = data.draw(st.lists(kinds, min_size=1, max_size=6))
    torch.manual_seed(len(draws))
    logits = torch.randn(len(draws), 3000)
    together, logprobs = draw_tokens(logits, draws)
    alone = [draw_tokens(logits[i : i + 1], [draw]) for i, draw in enumerate(draws)]
    assert together == [tokens[0] for tokens, _ in alone]
    assert logprobs == pytest.approx([p[0] for _, p in alone], abs=1e-5)


def test_a_nucleus_larger_than_the_presorted_tokens_is_complete() -> None:
    """Flat logits over 3,000 tokens: top_p 0.9 needs 2,700 of them, more than the 1,024 that are sorted first.

    Of 500 draws none is beyond 1,024 with probability (1024/2700)^500, none in the last 100 with (26/27)^500 < 10⁻⁸.
    """
    draws = [Draw(Sampling(1.0, 0.9, 0), u) for u in numbers(500)]
    tokens, _ = draw_tokens(torch.arange(3000.0).expand(500, 3000) * -1e-6, draws)
    assert 2600 < max(tokens) <= 2700


def test_rounding_hardly_ever_changes_a_draw() -> None:
    """Logits that differ by a batch's rounding, 4,000 draws of 49,152 tokens: about 0.1 may differ, more than 2 with
    probability 10⁻⁴. One cumulated sum over the whole vocabulary lets about ten differ."""
    torch.manual_seed(0)
    logits = torch.randn(1, 49_152) * 2.5
    rounded = logits + torch.randn_like(logits) * 5e-6
    us = numbers(4000)

    def draw(of: torch.Tensor) -> list[int]:
        probabilities = of.softmax(1).expand(100, -1)
        return [t for i in range(0, 4000, 100) for t in inverse_transform(probabilities, us[i : i + 100]).tolist()]

    assert sum(a != b for a, b in zip(draw(logits), draw(rounded), strict=True)) <= 2


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 0.0, 1e-30, 0.25, 1.0]), min_size=1, max_size=600).filter(any),
    number=st.floats(0, 1, exclude_max=True),
)
def test_a_token_of_probability_0_is_never_drawn(weights: list[float], number: float) -> None:
    [token] = inverse_transform(torch.tensor([weights]), [number]).tolist()
    assert weights[token] > 0
    tokens = [i for i, weight in enumerate(weights) if weight][::-1]
    some = torch.tensor([[weights[i] for i in tokens]])
    assert inverse_transform_among(some, torch.tensor([tokens]), len(weights), [number]).tolist() == [token]


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2.0**-53])
def test_an_impossible_token_is_never_drawn(number: float) -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf"), float("-inf")]])
    for top_k in (0, 2):
        [token], [logprob] = draw_tokens(logits, [Draw(Sampling(1.0, 1.0, top_k), number)])
        assert token in (1, 3)
        assert logprob == pytest.approx(-0.6931, abs=1e-4)


def test_log_probabilities_are_those_before_temperature() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    [token], [logprob] = draw_tokens(logits, [Draw(Sampling(0.0, 1.0, 0), 0.3)])
    assert token == 2
    assert logprob == pytest.approx(logits.log_softmax(1)[0, 2].item())
