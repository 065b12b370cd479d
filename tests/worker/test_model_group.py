"""Models of one base in one forward: what it gives is what each model gives alone, and what fails fails its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from tests.adapters import merged, random_adapter
from tests.tiny import tiny_model
from tests.worker.test_proxy_tuning import PROMPT, ROWS, job, run, subject_of
from tests.worker.test_scheduler import CPU, drain, drawn, sample_job, state
from w2s_core.pool.messages import Expert, JobFailed, Ping, Pong, Row, Sampling, ScoreJob, ScoreResult
from w2s_core.pool.specs import ModelInfo
from w2s_core.types import Tokens
from w2s_core.worker import model_group, step_outputs
from w2s_core.worker.batch import Batch
from w2s_core.worker.loading import make_runner
from w2s_core.worker.lora import LoRAAdapter, SharedBase
from w2s_core.worker.model_runner import ModelRunner, forward_together
from w2s_core.worker.models import WorkerModels
from w2s_core.worker.token_tree import TokenTree

ADAPTERS = {"m": None, "t": 1, "u": 2}  # the base, and two adapters of other ranks, by their seeds
SLOT_BYTES = 256  # of KV
ANSWERS = ((), (7,), (7, 8, 9), (7, 8, 4), (5,) * 9)


def adapters(model: PreTrainedModel, *, head: bool = False) -> dict[str, LoRAAdapter]:
    return {name: random_adapter(model, seed, rank=2 + seed, head=head) for name, seed in ADAPTERS.items() if seed}


def shared_runners(
    model: PreTrainedModel, own: Mapping[str, LoRAAdapter], cache_bytes: int = 1 << 22
) -> dict[str, tuple[ModelRunner, ModelInfo]]:
    """Runners of the base "m" and of its adapters "t" and "u"."""
    base = SharedBase(model)
    names = {name: base.add(adapter, "it") for name, adapter in own.items()}
    return {name: make_runner(base, CPU, cache_bytes, adapter=names.get(name)) for name in ADAPTERS}


def shared(model: PreTrainedModel | None = None, cache_bytes: int = 1 << 22, *, head: bool = False) -> WorkerModels:
    model = model or tiny_model()
    return WorkerModels(shared_runners(model, adapters(model, head=head), cache_bytes))


def separate(model: PreTrainedModel | None = None, cache_bytes: int = 1 << 22, *, head: bool = False) -> WorkerModels:
    """The same models with merged weights, which share nothing."""
    model = model or tiny_model()
    own = {name: merged(model, adapter) for name, adapter in adapters(model, head=head).items()}
    return subject_of({"m": model} | own, cache_bytes)


class Forwards:
    """Counts the forwards, each by the names of the models that are in it."""

    def __init__(self, subject: WorkerModels, patch: pytest.MonkeyPatch) -> None:
        self.models: list[tuple[str, ...]] = []
        names = {id(s.runner): name for name, s in subject._schedulers.items()}
        calls: list[None] = []
        [model] = {id(s.runner._model): s.runner._model for s in subject._schedulers.values()}.values()
        model.register_forward_pre_hook(lambda *_: calls.append(None))

        def counted(batches: Sequence[tuple[ModelRunner, Batch]]) -> list[torch.Tensor]:
            before = len(calls)
            logits = forward_together(batches)
            assert len(calls) == before + 1, "one call of the model"
            self.models.append(tuple(names[id(runner)] for runner, _ in batches))
            return logits

        patch.setattr(model_group, "forward_together", counted)


def scores(subject: WorkerModels, jobs: Sequence[ScoreJob]) -> dict[int, tuple[float, ...]]:
    for each in jobs:
        subject.handle(each)
    return {result.id: result.logprobs for result in drain(subject) if isinstance(result, ScoreResult)}


PAIR = (ScoreJob(1, 1, "t", (1, 2, 3), ANSWERS), ScoreJob(2, 1, "m", (9, 2, 3, 4), ANSWERS))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma2", "gemma3"])
def test_a_pairs_scores_are_those_of_merged_weights(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = (*PAIR, ScoreJob(3, 2, "u", (5, 6), ANSWERS))
    expected = scores(separate(tiny_model(family)), jobs)
    subject = shared(tiny_model(family))
    forwards = Forwards(subject, monkeypatch)
    found = scores(subject, jobs)
    assert forwards.models == [("m", "t", "u")]
    for number, logprobs in expected.items():
        assert found[number] == pytest.approx(logprobs, rel=0, abs=1e-4)
    assert max(abs(one - other) for one, other in zip(found[1], found[2], strict=True)) > 0.1
    state(subject)


def test_an_adapter_of_the_layer_that_makes_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the rows of the logits, not those of the tokens."""
    jobs = (*PAIR, ScoreJob(3, 2, "u", (5, 6), ANSWERS))
    expected = scores(separate(tiny_model(), head=True), jobs)
    assert expected != scores(separate(), jobs)
    subject = shared(tiny_model(), head=True)
    forwards = Forwards(subject, monkeypatch)
    found = scores(subject, jobs)
    assert forwards.models == [("m", "t", "u")]
    for number, logprobs in expected.items():
        assert found[number] == pytest.approx(logprobs, rel=0, abs=1e-4)


@dataclass(frozen=True)
class Session:
    """A prompt, and for each step the answers whose logits are asked for."""

    model: str
    prompt: Tokens
    steps: tuple[tuple[Tokens, ...], ...]
    trees: list[TokenTree] = field(default_factory=list, compare=False)


_TOKENS = st.integers(0, 4)  # few, so that answers share their beginnings
_ANSWERS = st.lists(st.lists(_TOKENS, max_size=6).map(tuple), max_size=4).map(tuple)
_SESSION = st.builds(
    Session,
    model=st.sampled_from(list(ADAPTERS)),
    prompt=st.lists(st.integers(0, 255), min_size=1, max_size=40).map(tuple),
    steps=st.lists(_ANSWERS, min_size=3, max_size=3).map(tuple),
)
_MODELS = {family: tiny_model(family).double() for family in ("llama", "gpt2", "gemma2")}
_RUNNERS = {
    family: {name: runner for name, (runner, _) in shared_runners(model, adapters(model, head=True)).items()}
    for family, model in _MODELS.items()
}


@settings(max_examples=150, deadline=None)
@given(
    family=st.sampled_from(list(_RUNNERS)),
    sessions=st.lists(_SESSION, min_size=1, max_size=6),
    budgets=st.lists(st.integers(1, 30), min_size=3, max_size=3),
)
def test_one_forward_equals_separate_ones(family: str, sessions: list[Session], budgets: list[int]) -> None:
    """Sessions of any models, slices of their prompts, and branches, whose KV the earlier steps have written."""
    runners = _RUNNERS[family]
    trees = [[TokenTree(runners[session.model].cache, session.prompt) for session in sessions] for _ in range(2)]
    for step, budget in enumerate(budgets):
        joint, alone = ({name: Batch(budget) for name in ADAPTERS} for _ in range(2))
        for batches, own in ((joint, trees[0]), (alone, trees[1])):
            for session, tree in zip(sessions, own, strict=True):
                for answer in session.steps[step]:
                    batches[session.model].request_logits(tree, tree.insert(answer))
        running = [name for name, batch in joint.items() if batch.size]
        together = forward_together([(runners[name], joint[name]) for name in running]) if running else []
        for name, logits in zip(running, together, strict=True):
            torch.testing.assert_close(logits, runners[name].forward(alone[name]), rtol=0, atol=1e-4)
            assert len(logits) == len(joint[name].logits_rows)
        for tree in (*trees[0], *trees[1]):
            tree.check_integrity()
    for tree in (*trees[0], *trees[1]):
        tree.close()
    for runner in runners.values():
        runner.cache.check_integrity()
        assert runner.cache.slots_used == 0


class Experts(torch.nn.Module):
    """Two linear layers, each of which reads the tokens that are routed to it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.other = torch.nn.Linear(width, width), torch.nn.Linear(width, width)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = torch.empty_like(inputs)
        routed = inputs[..., 0] > 0
        outputs[routed], outputs[~routed] = self.one(inputs[routed]), self.other(inputs[~routed])
        return outputs


def test_layers_that_read_some_of_the_tokens_have_a_forward_for_each_model() -> None:
    torch.manual_seed(0)
    model = tiny_model()
    model.model.layers[1].mlp = Experts(32)
    expected = scores(separate(deepcopy(model)), PAIR)
    subject = shared(model)
    calls: list[None] = []
    model.register_forward_pre_hook(lambda *_: calls.append(None))
    found = scores(subject, PAIR)
    assert len(calls) == 1 + 2, "the first shows that it cannot be"
    for number, logprobs in expected.items():
        assert found[number] == pytest.approx(logprobs, rel=0, abs=1e-4)
    calls.clear()
    scores(subject, [replace(each, id=each.id + 2, session=7) for each in PAIR])
    assert len(calls) == 2


# Proxy tuning of a base by its adapters.

EXPERTS = (Expert("u", (9, 8), -1.0, 300), Expert("t", (9, 8), 1.0, 300))


@pytest.mark.parametrize("large", ["m", "t"])
@pytest.mark.parametrize("untuned", ["m", "u"])
@pytest.mark.parametrize("prompt", [PROMPT, (9, 8)])
def test_a_steered_draw_has_all_its_logits_from_one_forward(
    large: str, untuned: str, prompt: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = [Expert(untuned, prompt, -1.5, 300), Expert("t", prompt, 1.5, 300)]
    asked = replace(job(1, experts=experts, sampling=Sampling(ignore_eos=True)), model=large)
    expected = run(separate(), asked)
    subject = shared()
    forwards = Forwards(subject, monkeypatch)
    assert run(subject, asked) == expected
    assert [set(models) for models in forwards.models] == [{large, untuned, "t"}] * ROWS[0].length


def test_steered_rows_are_the_same_alone_and_among_others() -> None:
    jobs = [
        job(1, experts=EXPERTS),
        job(2, experts=(), rows=[Row((), 5, 20)]),
        replace(job(3, experts=EXPERTS[:1], sampling=Sampling(0.7, top_p=0.9)), model="t"),
        replace(job(4, experts=(), rows=[Row((), 6, 25)]), model="u"),
        job(5, experts=[Expert("t", PROMPT, 0.5, 300)]),
        replace(job(6, experts=[Expert("m", PROMPT, 0.5, 300)]), model="t"),
    ]
    alone = [run(shared(), each)[0] for each in jobs]
    assert run(shared(), *jobs) == alone
    assert run(shared(), *jobs[::-1]) == alone[::-1]


@pytest.mark.parametrize(("large", "others"), [("m", "ut"), ("t", "um")])
def test_preempted_rows_draw_the_same_tokens(large: str, others: str) -> None:
    experts = [replace(EXPERTS[0], model=name, weight=weight) for name, weight in zip(others, (-1.0, 1.0), strict=True)]
    steered = replace(job(0, experts=experts, sampling=Sampling(ignore_eos=True)), model=large)
    rows = {n: tuple(Row((), n * 10 + i, 30) for i in range(3)) for n in (1, 2)}
    jobs = [replace(steered, id=n, session=n, rows=rows[n]) for n in rows]
    expected = [run(shared(), each)[0] for each in jobs]
    # One session takes 3 + 90 slots, so two do not fit, in any of the models.
    assert run(shared(cache_bytes=SLOT_BYTES * 110), *jobs) == expected


def test_long_prompts_and_scores_go_in_slices() -> None:
    long = tuple(i * 7 % 256 for i in range(400))
    jobs = [ScoreJob(1, 1, "t", long, ANSWERS), ScoreJob(2, 1, "m", (1,), (long,)), ScoreJob(3, 3, "u", (2,), ANSWERS)]
    expected, found = scores(separate(), jobs), scores(shared(), jobs)
    assert found.keys() == expected.keys()
    for number, logprobs in expected.items():
        assert found[number] == pytest.approx(logprobs, rel=1e-5, abs=1e-4)


# Failures.


def broken(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("out of memory in /a/file")


def failures(outcomes: Sequence[object]) -> list[JobFailed]:
    return [outcome for outcome in outcomes if isinstance(outcome, JobFailed)]


def test_a_failing_forward_fails_the_sessions_in_it_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = sample_job(7, [Row((), 1, 5)])
    subject = shared()
    subject.handle(idle)
    expected = drawn(drain(subject), 7, 1)
    with monkeypatch.context() as patch:
        patch.setattr(subject._schedulers["m"].runner.base.model, "forward", broken)
        for each in (*PAIR, job(3, experts=EXPERTS)):
            subject.handle(each)
        outcomes = subject.step()
    assert sorted((failure.id, failure.message) for failure in failures(outcomes)) == [
        (number, "OutOfMemoryError") for number in (1, 2, 3)
    ]
    assert subject.idle
    assert state(subject).sessions == {"m": 1, "t": 0, "u": 0}, "the session of the first job"
    subject.handle(replace(idle, id=8))
    assert drawn(drain(subject), 8, 1) == expected
    for number, logprobs in scores(shared(), PAIR).items():
        assert scores(subject, PAIR)[number] == pytest.approx(logprobs, rel=0, abs=1e-4)


def test_an_update_that_fails_fails_the_sessions_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draw of the base's rows has no memory; the adapters' scores have come out of the same forward."""
    subject = shared()
    monkeypatch.setattr(step_outputs, "draw_tokens", broken)
    for each in (PAIR[0], sample_job(5, [Row((), 1, 5)])):
        subject.handle(each)
    failed, *others = sorted(subject.step(), key=lambda outcome: not isinstance(outcome, JobFailed))
    assert isinstance(failed, JobFailed)
    assert failed.id == 5
    assert [(type(other), other.id) for other in others] == [(ScoreResult, 1)]
    assert state(subject).slots_used["m"] == 0


@pytest.mark.parametrize("expert", ["t", "u"])
def test_a_job_that_fails_in_an_expert_is_dropped_in_the_same_step(
    expert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows were to draw from the forward that they are in. Rows without that expert do."""
    subject = shared()
    scheduler = subject._schedulers[expert]
    monkeypatch.setattr(scheduler, "_update_tasks", broken)
    subject.handle(job(1, experts=[each for each in EXPERTS if each.model == expert]))
    subject.handle(job(2, experts=()))
    outcomes = drain(subject)
    assert [failure.id for failure in failures(outcomes)] == [1]
    assert drawn(outcomes, 2, len(ROWS)) == run(shared(), job(2, experts=()))[0]
    assert state(subject).jobs == 0


def test_logits_that_are_no_numbers_fail_their_session_alone() -> None:
    """The adapter is damaged; the base's session is in the same forward."""
    subject = shared()
    base = subject._schedulers["m"].runner.base
    layer = base.model.get_submodule("model.layers.0.mlp.down_proj")
    layer.changes["/adapters/1"][1].fill_(torch.nan)  # type: ignore[index, union-attr, operator]
    found = {}
    for each in PAIR:
        subject.handle(each)
    for outcome in drain(subject):
        found[outcome.id] = outcome
    assert isinstance(found[1], JobFailed)
    assert "not finite" in found[1].message
    [expected] = scores(shared(), PAIR[1:]).values()
    assert isinstance(found[2], ScoreResult)
    assert found[2].logprobs == pytest.approx(expected, abs=1e-5)


def test_a_lost_device_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("device-side assert triggered")

    subject = shared()
    monkeypatch.setattr(subject._schedulers["m"].runner.base.model, "forward", lost)
    subject.handle(PAIR[0])
    with pytest.raises(torch.AcceleratorError):
        subject.step()


def test_a_forward_of_several_models_is_timed_once() -> None:
    """It has the first of its models' kinds: prefill, decode, score."""
    subject = shared()
    subject.handle(sample_job(5, [Row((), 1, 4)], (1,), sampling=Sampling(ignore_eos=True)))
    for number, prompt in enumerate([(1,), (1, 2)]):  # that of one token has nothing to prefill
        subject.handle(ScoreJob(number, number, "t", prompt, ((7, 8),)))
        subject.step()
    drain(subject)
    [pong] = subject.handle(Ping())
    assert isinstance(pong, Pong)
    assert [kind for kind, _ in pong.steps] == ["decode", "prefill", "decode", "decode"]
