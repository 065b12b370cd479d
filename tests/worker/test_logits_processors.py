"""Logits processors: against transformers', against plain Python, alone and in a batch."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from w2s_core.pool.messages import Sampling
from w2s_core.search.randomness import root_key, successor_key, uniform
from w2s_core.types import Tokens
from w2s_core.worker import sampling as drawing
from w2s_core.worker.logits_processors import LogitsProcessor, LogitsRules, process_logits
from w2s_core.worker.sampling import Draw, draw_tokens

VOCABULARY, EOS = 24, 23
PROMPT, ANSWER = (1, 2, 3, 3), (3, 4, 5, 5, 5, 1, 2)
NEVER = float("-inf")
EVERYTHING = Sampling(
    temperature=0.8,
    top_p=0.9,
    top_k=15,
    min_p=0.02,
    presence_penalty=0.4,
    frequency_penalty=0.3,
    repetition_penalty=1.3,
    logit_bias=((4, 2.0), (9, -3.0)),
    min_tokens=10,
    stop_token_ids=(22,),
    allowed_token_ids=tuple(range(1, 24)),
    bad_words=((7,), (5, 6), (1, 2, 8)),
)

ids = st.integers(0, VOCABULARY - 1)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    top_p=st.sampled_from([0.4, 1.0]),
    top_k=st.sampled_from([0, 6]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    presence_penalty=st.sampled_from([0.0, 1.5, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.1, -2.0]),
    repetition_penalty=st.sampled_from([1.0, 1.2, 0.3]),
    logit_bias=st.dictionaries(ids, st.floats(-100, 100), max_size=4).map(lambda d: tuple(d.items())),
    min_tokens=st.integers(0, 12),
    stop_token_ids=st.sampled_from([(), (22,)]),
    allowed_token_ids=st.none() | st.lists(ids, max_size=8).map(lambda more: (0, *more)),
    bad_words=st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
)
answers = st.lists(st.integers(0, 9), max_size=20).map(tuple)


def change(logits: torch.Tensor, sampling: Sampling, answer: Tokens = ANSWER) -> torch.Tensor:
    """(vocab,) of one row."""
    return process_logits(logits[None], [LogitsProcessor(LogitsRules(sampling, PROMPT, {EOS}), answer)])[0]


def oracle(logits: torch.Tensor, s: Sampling, answer: Tokens) -> list[float]:
    """The same, token by token."""
    values, counts, bias = logits.tolist(), Counter(answer), dict(s.logit_bias)
    for token in range(VOCABULARY):
        value = values[token] + bias.get(token, 0.0)
        if token in PROMPT or token in counts:
            value = value / s.repetition_penalty if value > 0 else value * s.repetition_penalty
        if token in counts:
            value -= s.presence_penalty + s.frequency_penalty * counts[token]
        if len(answer) < s.min_tokens and (token == EOS or token in s.stop_token_ids):
            value = NEVER
        if any(answer[len(answer) - len(w) + 1 :] == w[:-1] and token == w[-1] for w in s.bad_words if len(w) > 1):
            value = NEVER
        if (token,) in s.bad_words or (s.allowed_token_ids is not None and token not in s.allowed_token_ids):
            value = NEVER
        values[token] = value
    if s.min_p:
        best = max(values)
        ratios = [math.exp((v - best) / s.temperature) if s.temperature else float(v == best) for v in values]
        values = [v if ratio >= s.min_p * (1 - 1e-6) else NEVER for v, ratio in zip(values, ratios, strict=True)]
    return values


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(samplings, answers), min_size=1, max_size=4), st.integers(0, 99))
def test_rows_change_as_plain_python_says(rows: list[tuple[Sampling, Tokens]], seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(len(rows), VOCABULARY) * 4
    before = logits.clone()
    found = process_logits(logits, [LogitsProcessor(LogitsRules(s, PROMPT, {EOS}), answer) for s, answer in rows])
    assert torch.equal(logits, before), "the raw logits are still needed"
    for row, raw, (s, answer) in zip(found, logits, rows, strict=True):
        wanted = oracle(raw, s, answer)
        assert row.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(samplings, answers, st.integers(0, 20))
def test_an_answer_that_fails_over_is_processed_the_same(sampling: Sampling, answer: Tokens, at: int) -> None:
    """Bit for bit, so that a worker's death changes no answer."""
    logits = torch.randn(1, VOCABULARY)
    job = LogitsRules(sampling, PROMPT, {EOS})
    grown = LogitsProcessor(job, answer[:at])
    for token in answer[at:]:
        grown.append(token)
    anew = LogitsProcessor(LogitsRules(sampling, PROMPT, {EOS}), answer)
    assert torch.equal(process_logits(logits, [grown]), process_logits(logits, [anew]))


@pytest.mark.parametrize(
    ("sampling", "processors"),
    [
        (Sampling(repetition_penalty=1.7), [RepetitionPenaltyLogitsProcessor(1.7)]),
        (Sampling(repetition_penalty=0.6), [RepetitionPenaltyLogitsProcessor(0.6)]),
        (Sampling(0.7, min_p=0.2), [TemperatureLogitsWarper(0.7), MinPLogitsWarper(0.2)]),
        (Sampling(bad_words=((3,), (1, 2, 9), (4, 4))), [NoBadWordsLogitsProcessor([[3], [1, 2, 9], [4, 4]], EOS)]),
        (Sampling(logit_bias=((3, 5.0), (8, -2.5))), [SequenceBiasLogitsProcessor([[[3], 5.0], [[8], -2.5]])]),
        (Sampling(min_tokens=8), [MinNewTokensLengthLogitsProcessor(len(PROMPT), 8, EOS)]),
        (Sampling(min_tokens=7), [MinNewTokensLengthLogitsProcessor(len(PROMPT), 7, EOS)]),
    ],
    ids=["repetition", "encouraged", "min_p", "bad words", "bias", "too short", "long enough"],
)
def test_rows_change_as_in_transformers(sampling: Sampling, processors: list[Any]) -> None:
    torch.manual_seed(1)
    logits = torch.randn(VOCABULARY) * 2
    expected = logits[None]
    for processor in processors:
        expected = processor(torch.tensor([PROMPT + ANSWER]), expected)
    found = change(logits, sampling) / sampling.temperature
    torch.testing.assert_close(found, expected[0])
    assert not torch.equal(found, logits) or sampling.min_tokens == 7


@pytest.mark.parametrize(
    ("sampling", "processors"),
    [
        (Sampling(0.8, min_p=0.1), [TemperatureLogitsWarper(0.8), MinPLogitsWarper(0.1)]),
        (
            Sampling(1.2, 0.8, 9, 0.05),
            [TemperatureLogitsWarper(1.2), MinPLogitsWarper(0.05), TopKLogitsWarper(9), TopPLogitsWarper(0.8)],
        ),
        (
            Sampling(1.0, 0.9, repetition_penalty=1.5, logit_bias=((4, 1.0),)),
            [
                SequenceBiasLogitsProcessor([[[4], 1.0]]),
                RepetitionPenaltyLogitsProcessor(1.5),
                TopPLogitsWarper(0.9),
            ],
        ),
    ],
    ids=["min_p", "min_p, top_k, top_p", "penalty, bias, top_p"],
)
def test_frequencies_are_those_of_transformers(sampling: Sampling, processors: list[Any]) -> None:
    """40,000 draws of 24 tokens: chi² with ≤ 23 degrees of freedom exceeds 76 with p < 10⁻⁶."""
    torch.manual_seed(0)
    logits, n = torch.randn(VOCABULARY) * 1.5, 40_000
    row = LogitsProcessor(LogitsRules(sampling, PROMPT, {EOS}), ANSWER)
    numbers = [uniform(successor_key(root_key(4), 0, i), 0) for i in range(n)]
    tokens, _ = draw_tokens(logits.expand(n, VOCABULARY), [Draw(sampling, number, row) for number in numbers])
    scores = logits[None].double()
    for processor in processors:
        scores = processor(torch.tensor([PROMPT + ANSWER]), scores)
    expected = scores[0].softmax(0) * n
    counts = torch.bincount(torch.tensor(tokens), minlength=VOCABULARY).double()
    possible = expected > 0
    assert 1 < possible.sum() <= VOCABULARY
    assert counts[~possible].sum() == 0
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < 76


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(samplings, answers, st.booleans()), min_size=1, max_size=6))
def test_rows_do_not_share_processors(rows: list[tuple[Sampling, Tokens, bool]]) -> None:
    """Rows with and without a processor draw the same together and alone."""
    torch.manual_seed(len(rows))
    logits = torch.randn(len(rows), VOCABULARY)
    draws = [
        Draw(s, uniform(7, i), LogitsProcessor(LogitsRules(s, PROMPT, {EOS}), answer) if extras else None)
        for i, (s, answer, extras) in enumerate(rows)
    ]
    together, logprobs = draw_tokens(logits, draws)
    assert together == [draw_tokens(logits[i : i + 1], [draw])[0][0] for i, draw in enumerate(draws)]
    raw = logits.log_softmax(1)[range(len(rows)), together].tolist()
    assert logprobs == pytest.approx(raw, abs=1e-5), "the model's own probability is reported"


def test_rows_without_a_processor_are_not_processed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = process_logits
    monkeypatch.setattr(drawing, "process_logits", lambda logits, rows: seen.append(len(rows)) or real(logits, rows))
    logits, plain = torch.randn(5, VOCABULARY), Draw(Sampling(), 0.5)
    draw_tokens(logits, [plain] * 5)
    assert not Sampling().needs_processor
    assert not Sampling(0.3, 0.5, 5, ignore_eos=True, stop_token_ids=(3,)).needs_processor
    assert seen == []
    shaped = Draw(EVERYTHING, 0.5, LogitsProcessor(LogitsRules(EVERYTHING, PROMPT, {EOS}), ANSWER))
    draw_tokens(logits, [plain, shaped, plain, plain, shaped])
    assert seen == [2]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(repetition_penalty=1e-38),
        Sampling(temperature=1e-40, min_p=1e-300),
        Sampling(temperature=1e-4, repetition_penalty=1e-38, frequency_penalty=-2, logit_bias=((2, 1e38),)),
        Sampling(allowed_token_ids=(5,), logit_bias=((5, -100.0),), min_p=1.0),
    ],
)
def test_extremes_still_draw_a_token(sampling: Sampling) -> None:
    row = LogitsProcessor(LogitsRules(sampling, PROMPT, {EOS}), ANSWER)
    for number in (0.0, 0.7, 1 - 2.0**-53):
        [token], [logprob] = draw_tokens(torch.randn(1, VOCABULARY) * 9, [Draw(sampling, number, row)])
        assert 0 <= token < VOCABULARY
        assert math.isfinite(logprob)


def test_counting_updates_one_entry_per_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more token changes one entry, whatever the answer's length."""
    row = LogitsProcessor(LogitsRules(EVERYTHING, PROMPT, {EOS}), ())
    calls: list[int] = []
    real = LogitsRules.penalty
    monkeypatch.setattr(LogitsRules, "penalty", lambda self, count: calls.append(count) or real(self, count))
    for i in range(500):
        row.append(i % 20)
    assert len(calls) == 500
    assert row.size <= VOCABULARY
