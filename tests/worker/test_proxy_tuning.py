"""Proxy tuning (EFT) in the scheduler, on tiny models in process: its identities, and a plain transformers loop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from tests.tiny import EOS, FAMILIES, tiny_model
from tests.worker.test_scheduler import CPU, drain, drawn, state
from w2s_core.pool.messages import (
    CancelJob,
    CloseSession,
    Expert,
    JobFailed,
    Row,
    SampleJob,
    SampleUpdate,
    Sampling,
)
from w2s_core.search.randomness import uniform
from w2s_core.types import Tokens
from w2s_core.worker.loading import make_runner
from w2s_core.worker.models import WorkerModels
from w2s_core.worker.sampling import Draw, draw_tokens

PROMPT = (1, 2, 3)
ROWS = [Row((), 11, 12), Row((5, 6), 12, 12), Row((5, 7), 13, 12)]
SEEDS = {"m": 0, "t": 1, "u": 2, "t2": 3, "u2": 4}
# Two pairs, one of which the answer is steered away from; every model reads a prompt of its own.
EXPERTS = (
    Expert("u", (9, 8), -1.0, 300),
    Expert("t", (9, 8), 1.0, 300),
    Expert("u2", (1, 2, 3, 4), 0.7, 300),
    Expert("t2", (1, 2, 3, 4), -0.7, 300),
)


def subject_of(models: Mapping[str, PreTrainedModel], cache_bytes: int = 1 << 22) -> WorkerModels:
    return WorkerModels({name: make_runner(model, CPU, cache_bytes) for name, model in models.items()})


def family(name: str) -> dict[str, PreTrainedModel]:
    return {model: tiny_model(name, seed) for model, seed in SEEDS.items()}


def llamas(cache_bytes: int = 1 << 22) -> WorkerModels:
    return subject_of(family("llama"), cache_bytes)


def job(number: int, rows: Sequence[Row] = ROWS, experts: Sequence[Expert] = EXPERTS, **changes: object) -> SampleJob:
    settings = {"sampling": Sampling(), "report_every": 100} | changes
    return SampleJob(number, number, "m", PROMPT, tuple(rows), experts=tuple(experts), **settings)  # type: ignore[arg-type]


def run(subject: WorkerModels, *jobs: SampleJob) -> list[list[Tokens]]:
    """The tokens of each job's rows. Afterwards nothing is held."""
    for each in jobs:
        assert subject.handle(each) == []
    outcomes = drain(subject)
    state(subject)
    for each in jobs:
        subject.handle(CloseSession(each.session))
    assert set(state(subject).slots_used.values()) == {0}
    assert state(subject).jobs == 0
    return [drawn(outcomes, each.id, len(each.rows)) for each in jobs]


def plain_loop(models: Mapping[str, PreTrainedModel], asked: SampleJob) -> list[Tokens]:
    """The same answers by transformers alone: every model runs over all of its tokens for each draw."""
    answers = []
    for row in asked.rows:
        tokens, new = row.tokens, ()
        while len(new) < row.length and EOS not in new:
            z = last_logits(models["m"], asked.prompt + tokens + new)
            base = z.clone()
            for expert in asked.experts:
                z += expert.weight * last_logits(models[expert.model], expert.prompt + tokens + new)
            fraction = asked.sampling.plausibility
            if fraction:
                z[base.softmax(0) < fraction * base.softmax(0).max()] = -math.inf
            draw = Draw(asked.sampling, uniform(row.key, len(tokens + new)))
            [[token], _] = draw_tokens(z[None], [draw])
            new += (token,)
        answers.append(new)
    return answers


def last_logits(model: PreTrainedModel, tokens: Tokens) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0, -1].clone()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_equals_a_plain_loop_for_every_family(name: str, temperature: float) -> None:
    asked = job(1, sampling=Sampling(temperature=temperature, top_k=40, top_p=0.95))
    expected = plain_loop(family(name), asked)
    assert run(subject_of(family(name)), asked) == [expected]
    assert run(subject_of(family(name)), replace(asked, experts=())) != [expected]


def test_no_weight_is_plain_sampling_and_untuned_equal_to_base_is_the_tuned_model() -> None:
    models = family("llama")
    plain = run(subject_of(models), job(1, experts=()))
    assert run(subject_of(models), job(1, experts=[replace(e, weight=0.0) for e in EXPERTS])) == plain
    experts = [Expert("m", PROMPT, -1.0, 300), Expert("t", PROMPT, 1.0, 300)]
    tuned = run(subject_of({"m": models["t"]}), job(1, experts=()))
    assert run(subject_of(family("llama")), job(1, experts=experts)) == tuned != plain
    # The same weights as a model of their own: bit-equal logits cancel exactly.
    copy = family("llama") | {"u": tiny_model("llama", SEEDS["m"])}
    assert run(subject_of(copy), job(1, experts=[replace(experts[0], model="u"), experts[1]])) == tuned


def test_an_expert_that_is_the_large_model_with_its_prompt_costs_no_tokens_of_its_own() -> None:
    subject = llamas()
    subject.handle(job(1, experts=[Expert("m", PROMPT, -1.0, 300), Expert("t", PROMPT, 1.0, 300)]))
    drain(subject)
    assert state(subject).sessions == {"m": 1, "t": 1, "u": 0, "t2": 0, "u2": 0}
    subject.handle(job(2, experts=[Expert("m", (7,), 0.5, 300)]))
    drain(subject)
    assert state(subject).sessions["m"] == 3, "its own prompt needs a tree of its own"


def test_rows_are_the_same_alone_and_among_others() -> None:
    jobs = [
        job(1),
        job(2, experts=(), rows=[Row((), 5, 20)]),
        job(3, experts=EXPERTS[:2], rows=[Row((4,), 6, 9)], sampling=Sampling(temperature=0.7, top_p=0.9)),
        job(4, experts=EXPERTS[::-1]),
        job(5, experts=EXPERTS[:3], sampling=Sampling(presence_penalty=0.5, plausibility=0.1)),
    ]
    alone = [run(llamas(), each)[0] for each in jobs]
    assert run(llamas(), *jobs) == alone
    assert run(llamas(), *jobs[::-1]) == alone[::-1]


def test_preempted_rows_draw_the_same_tokens() -> None:
    jobs = [
        job(n, rows=[Row((), n * 10 + i, 30) for i in range(3)], sampling=Sampling(ignore_eos=True)) for n in (1, 2)
    ]
    expected = [run(llamas(), each)[0] for each in jobs]
    bytes_per_token = make_runner(tiny_model(), CPU, 1)[1].kv_bytes_per_token
    # One session takes 3 + 90 slots, so two do not fit, in any of the models.
    assert run(llamas(bytes_per_token * 110), *jobs) == expected


def test_a_session_resumed_from_its_tokens_draws_the_same_continuation() -> None:
    whole = run(llamas(), job(1, sampling=Sampling(ignore_eos=True)))[0]
    parts = [replace(row, tokens=row.tokens + tokens[:5], length=7) for row, tokens in zip(ROWS, whole, strict=True)]
    rest = run(llamas(), job(2, rows=parts, sampling=Sampling(ignore_eos=True)))[0]
    assert [tokens[:5] + more for tokens, more in zip(whole, rest, strict=True)] == whole


def test_logprobs_and_alternatives_are_the_large_models_own() -> None:
    subject = llamas()
    subject.handle(job(1, rows=ROWS[:1], sampling=Sampling(alternatives=3)))
    [update] = [o for o in drain(subject) if isinstance(o, SampleUpdate) and o.rows]
    [row] = update.rows
    model = tiny_model()
    for i, (token, logprob, alternatives) in enumerate(zip(row.tokens, row.logprobs, row.alternatives, strict=False)):
        expected = last_logits(model, PROMPT + row.tokens[:i]).log_softmax(0)
        assert logprob == pytest.approx(expected[token].item(), abs=1e-4)
        assert alternatives[0] == (int(expected.argmax()), pytest.approx(expected.max().item(), abs=1e-4))


def test_only_plausible_tokens_are_drawn() -> None:
    asked = job(1, sampling=Sampling(plausibility=0.3), experts=[replace(e, weight=50 * e.weight) for e in EXPERTS])
    assert run(llamas(), asked) == [plain_loop(family("llama"), asked)]


def test_an_implausible_token_is_drawn_where_masks_leave_no_other() -> None:
    [best] = run(llamas(), job(1, rows=[Row((), 1, 1)], experts=(), sampling=Sampling(temperature=0)))[0]
    other = (best[0] + 1,)
    sampling = Sampling(allowed_token_ids=other, plausibility=1.0)
    assert run(llamas(), job(1, rows=[Row((), 1, 3)], sampling=sampling)) == [[other * 3]]


def test_ids_that_the_pair_lacks_keep_their_logit_and_are_not_read_by_it() -> None:
    def models() -> dict[str, PreTrainedModel]:
        small = {name: tiny_model(seed=SEEDS[name], vocabulary=280) for name in ("t", "u")}
        return family("llama") | small

    experts = [Expert("u", (9,), -3.0, 280), Expert("t", (9,), 3.0, 280)]
    bias = Sampling(temperature=0, logit_bias=((290, 1000.0),))
    assert run(subject_of(models()), job(1, rows=[Row((), 1, 3)], experts=experts, sampling=bias)) == [[(290,) * 3]]
    [[after]] = run(
        subject_of(models()), job(1, rows=[Row((290, 4), 1, 1)], experts=experts, sampling=Sampling(temperature=0))
    )
    fresh = models()
    z = last_logits(fresh["m"], (*PROMPT, 290, 4))
    z[:280] += 3 * (last_logits(fresh["t"], (9, 4)) - last_logits(fresh["u"], (9, 4)))
    assert after == (int(z.argmax()),)


def test_a_job_that_fails_in_an_expert_is_dropped_everywhere() -> None:
    models = family("llama")
    with torch.no_grad():
        models["t"].get_output_embeddings().weight.fill_(math.nan)
    subject = subject_of(models)
    subject.handle(job(1))
    subject.handle(job(2, experts=()))
    outcomes = drain(subject)
    assert [o.id for o in outcomes if isinstance(o, JobFailed)] == [1]
    assert drawn(outcomes, 2, len(ROWS)) == run(llamas(), job(2, experts=()))[0]
    assert state(subject).jobs == 0


def test_an_expert_whose_forward_fails_fails_the_job_once() -> None:
    subject = llamas()
    subject._schedulers["t"].runner._model.forward = None  # type: ignore[assignment]
    subject.handle(job(1))
    outcomes = drain(subject)
    assert [o.id for o in outcomes if isinstance(o, JobFailed)] == [1]
    assert state(subject).jobs == 0


def test_a_cancelled_job_leaves_no_task() -> None:
    subject = llamas()
    subject.handle(job(1))
    subject.step()
    subject.handle(CancelJob(1))
    assert subject.idle
    subject.handle(CloseSession(1))
    assert set(state(subject).slots_used.values()) == {0}
