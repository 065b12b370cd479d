"""Reward models in the scheduler: rewards equal those of transformers from scratch, are computed once, and can be told
from classifiers that cannot be used."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from tests.tiny import FAMILIES, save_tiny, tiny_classifier
from tests.worker.test_scheduler import CPU, drain, state
from w2s_core.errors import ConfigurationError
from w2s_core.pool.messages import CancelJob, CloseSession, JobFailed, RewardJob, RewardResult
from w2s_core.pool.specs import ModelSpec, RewardHead
from w2s_core.types import Tokens
from w2s_core.worker.loading import make_runner
from w2s_core.worker.models import WorkerModels
from w2s_core.worker.reward_model import load_classifier

HEAD = RewardHead("reward_models.helpful")
THREE = ("bad", "fair", "good")
KV_BYTES = 1 << 20  # 2048 tokens


def worker_models(classifier: PreTrainedModel, head: RewardHead = HEAD, cache_bytes: int = KV_BYTES) -> WorkerModels:
    return WorkerModels({"m": make_runner(classifier, CPU, cache_bytes, reward=head)})


def reward_from_scratch(classifier: PreTrainedModel, tokens: Tokens, label: int = 0) -> float:
    """By transformers alone."""
    with torch.inference_mode():
        outputs = classifier(input_ids=torch.tensor([tokens])).logits[0].tolist()
    others = [value for i, value in enumerate(outputs) if i != label]
    return outputs[label] - (math.log(sum(map(math.exp, others))) if others else 0.0)


def rewards(subject: WorkerModels, answers: list[Tokens], prompt: Tokens = (5, 6, 7), number: int = 1) -> RewardResult:
    assert subject.handle(RewardJob(number, 1, "m", prompt, tuple(answers))) == []
    [result] = drain(subject)
    assert isinstance(result, RewardResult), result
    return result


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("labels", "label"), [(("reward",), None), (THREE, "good"), (THREE, 0), (THREE, "1")])
def test_rewards_equal_those_from_scratch(family: str, labels: tuple[str, ...], label: str | int | None) -> None:
    subject = worker_models(tiny_classifier(family, labels=labels), RewardHead("reward_models.x", label))
    answers = [(), (1,), (1, 2, 3), (1, 2, 9, 9), tuple(range(20)), (1, 2)]
    index = {None: 0, "good": 2, 0: 0, "1": 1}[label]
    whole = tiny_classifier(family, labels=labels)
    expected = [reward_from_scratch(whole, (5, 6, 7, *answer), index) for answer in answers]
    assert rewards(subject, answers).rewards == pytest.approx(expected, abs=1e-4)
    assert len({round(reward, 3) for reward in expected}) == len(answers)


TOKEN = st.integers(0, 3)  # few, so that answers share beginnings
CHUNK = st.lists(TOKEN, max_size=4).map(tuple)
# A round of answers: each continues a kept one, of which some of the last tokens may turn into others.
ROUND = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), CHUNK), min_size=1, max_size=6)


@settings(max_examples=40)
@given(rounds=st.lists(ROUND, min_size=1, max_size=6), family=st.sampled_from(["llama", "gpt2", "gemma3"]))
def test_incremental_rewards_equal_those_from_scratch_over_any_tree(
    rounds: list[list[tuple[int, int, Tokens]]], family: str
) -> None:
    subject, whole, beam = _SUBJECTS[family], _WHOLE[family], [()]
    for number, candidates in enumerate(rounds, 1):
        parents = [(beam[parent % len(beam)], cut, chunk) for parent, cut, chunk in candidates]
        answers: list[Tokens] = [parent[: max(0, len(parent) - cut)] + chunk for parent, cut, chunk in parents]
        result = rewards(subject, answers, number=number)
        expected = [reward_from_scratch(whole, (5, 6, 7, *answer)) for answer in answers]
        assert result.rewards == pytest.approx(expected, abs=1e-4)
        state(subject)  # checks the tree's integrity
        beam = answers[::2]
    subject.handle(CloseSession(1))
    assert state(subject).slots_used == {"m": 0}


_SUBJECTS = {family: worker_models(tiny_classifier(family)) for family in ("llama", "gpt2", "gemma3")}
_WHOLE = {family: tiny_classifier(family) for family in _SUBJECTS}


def test_only_new_tokens_are_run_and_a_known_reward_is_not_computed_again() -> None:
    subject = worker_models(tiny_classifier())
    assert rewards(subject, [(1, 2, 3)]).tokens_run == 3 + 3
    assert rewards(subject, [(1, 2, 3)]).tokens_run == 0
    assert rewards(subject, [(1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3)]).tokens_run == 2
    cut = rewards(subject, [(1, 2)])  # inside what has been run: its last token runs again
    assert cut.tokens_run == 1
    assert cut.rewards[0] == pytest.approx(reward_from_scratch(tiny_classifier(), (5, 6, 7, 1, 2)), abs=1e-4)


def test_a_long_text_is_run_in_slices_and_what_is_not_named_is_freed() -> None:
    subject, long = worker_models(tiny_classifier()), tuple(i % 7 for i in range(400))
    expected = [reward_from_scratch(tiny_classifier(), (5, 6, 7, *answer)) for answer in (long, long[:300])]
    assert rewards(subject, [long, long[:300]]).rewards == pytest.approx(expected, abs=1e-4)
    rewards(subject, [long[:4]])
    assert subject._schedulers["m"].trees[1].slot_end == 3 + 4


def test_sessions_that_crowd_each_other_out_of_kv_get_their_rewards() -> None:
    subject, whole = worker_models(tiny_classifier(), cache_bytes=KV_BYTES // 32), tiny_classifier()
    jobs = {
        number: RewardJob(number, number, "m", (number, 6, 7), tuple((number, *range(20), i) for i in range(3)))
        for number in range(1, 7)
    }
    for job in jobs.values():
        subject.handle(job)
    results = {outcome.id: outcome for outcome in drain(subject)}
    for number, job in jobs.items():
        result = results[number]
        assert isinstance(result, RewardResult)
        expected = [reward_from_scratch(whole, job.prompt + answer) for answer in job.answers]
        assert result.rewards == pytest.approx(expected, abs=1e-4)


def test_a_cancelled_job_is_dropped() -> None:
    subject = worker_models(tiny_classifier())
    subject.handle(RewardJob(1, 1, "m", (5,), (tuple(range(200)), tuple(range(1, 200)))))
    assert subject.step() == []
    subject.handle(CancelJob(1))
    assert subject.idle


def test_a_token_that_the_model_does_not_have_is_refused() -> None:
    [failure] = worker_models(tiny_classifier()).handle(RewardJob(1, 1, "m", (5,), ((1, 300),)))
    assert isinstance(failure, JobFailed)
    assert "no token 300" in failure.message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_finite_number_fails_its_session_alone(value: float) -> None:
    classifier = tiny_classifier()
    with torch.no_grad():
        embedding = classifier.get_input_embeddings().weight
        assert isinstance(embedding, torch.Tensor)
        embedding[9] = value
    subject = worker_models(classifier)
    subject.handle(RewardJob(1, 1, "m", (5,), ((1,), (9,))))
    subject.handle(RewardJob(2, 2, "m", (5,), ((1,), (2,))))
    outcomes = {outcome.id: outcome for outcome in drain(subject)}
    assert isinstance(outcomes[1], JobFailed)
    assert "not finite" in outcomes[1].message
    assert isinstance(outcomes[2], RewardResult)


def test_it_reads_the_tokens_that_its_embedding_and_its_tokenizer_have() -> None:
    """Not as many as its head has outputs."""
    for tokens, vocabulary in ((None, 300), (290, 290), (310, 300)):
        _, info = make_runner(tiny_classifier(), CPU, KV_BYTES, tokens=tokens, reward=HEAD)
        assert info.vocabulary == vocabulary


def saved(folder: Path, make: Callable[[], PreTrainedModel]) -> ModelSpec:
    make().save_pretrained(folder)
    return ModelSpec(str(folder), False, reward=HEAD)


def tiny_bert() -> PreTrainedModel:
    return BertForSequenceClassification(
        BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    spec = saved(tmp_path / "bert", tiny_bert)
    with pytest.raises(ConfigurationError, match=r"^reward_models\.helpful\.model: .*BertForSequenceClassification"):
        load_classifier(spec, torch.float32)


def test_a_model_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    spec = ModelSpec(str(save_tiny(tmp_path / "causal")), False, reward=HEAD)
    with pytest.raises(ConfigurationError, match=r"^reward_models\.helpful\.model: .*no weights for a head"):
        load_classifier(spec, torch.float32)


@pytest.mark.parametrize(
    ("labels", "label", "message"),
    [
        (THREE, None, r"several outputs; choose one of 0 \(bad\), 1 \(fair\), 2 \(good\)"),
        (THREE, "better", "no output `better`"),
        (THREE, 3, "no output `3`"),
        (THREE, -1, "no output `-1`"),
        (("reward",), "good", r"no output `good`. Its outputs are 0 \(reward\)"),
    ],
)
def test_a_label_that_is_missing_or_unknown_is_refused(
    labels: tuple[str, ...], label: str | int | None, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"^reward_models\.x\.label: .*{message}"):
        worker_models(tiny_classifier(labels=labels), RewardHead("reward_models.x", label))


def test_in_bfloat16_the_head_does_not_round() -> None:
    classifier = tiny_classifier().to(torch.bfloat16)
    whole = tiny_classifier().to(torch.bfloat16)
    result = rewards(worker_models(classifier), [tuple(range(i, i + 9)) for i in range(20)])
    expected = [reward_from_scratch(whole, (5, 6, 7, *range(i, i + 9))) for i in range(20)]
    assert result.rewards == pytest.approx(expected, abs=0.1)
    assert any(torch.tensor(reward).bfloat16().item() != reward for reward in result.rewards)
