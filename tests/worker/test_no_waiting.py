"""A step does not synchronize with the device: run on torch's "meta" device, where reading a value raises.

The meta device computes shapes only. Mixing devices raises too.
"""

from __future__ import annotations

import pytest
import torch

from tests.adapters import random_adapter
from tests.tiny import FAMILIES, tiny_classifier, tiny_model
from w2s_core.pool.messages import Sampling
from w2s_core.pool.specs import RewardHead
from w2s_core.worker import sampling
from w2s_core.worker.batch import Batch
from w2s_core.worker.loading import make_runner
from w2s_core.worker.logits_processors import LogitsProcessor, LogitsRules
from w2s_core.worker.lora import SharedBase
from w2s_core.worker.model_runner import forward_together
from w2s_core.worker.sampling import Draw
from w2s_core.worker.token_tree import TokenTree

UNREADABLE = torch.device("meta")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_reads_nothing_from_the_device(family: str) -> None:
    runner, _ = make_runner(tiny_model(family).to(UNREADABLE), UNREADABLE, 1 << 20)
    trees = [TokenTree(runner.cache, prompt) for prompt in ((1, 2, 3), tuple(range(30)))]
    for answers in ([(4, 5), (4, 6)], [(4, 5, 6), (4, 6, 7, 8)]):
        batch = Batch(100)
        for tree in trees:
            for answer in answers:
                batch.request_logits(tree, tree.insert(answer))
        logits = runner.forward(batch)
        assert logits.shape == (4, 300)
        assert logits.device.type == "meta"


@pytest.mark.parametrize("family", FAMILIES)
def test_nor_does_a_forward_of_a_base_and_its_adapters(family: str) -> None:
    model = tiny_model(family).to(UNREADABLE)
    base, adapters = SharedBase(model), [random_adapter(model, seed, head=True) for seed in (1, 2)]
    names = [None, *(base.add(adapter, "it") for adapter in adapters)]
    runners = [make_runner(base, UNREADABLE, 1 << 20, adapter=name)[0] for name in names]
    batches = [Batch(100) for _ in runners]
    for runner, batch in zip(runners, batches, strict=True):
        tree = TokenTree(runner.cache, (1, 2, 3))
        for answer in ((4, 5), (4, 6)):
            batch.request_logits(tree, tree.insert(answer))
    logits = forward_together(list(zip(runners, batches, strict=True)))
    assert [each.shape for each in logits] == [(2, 300)] * 3
    assert {each.device.type for each in logits} == {"meta"}
    assert base.reads_row_by_row, "it was one forward"


@pytest.mark.parametrize(("labels", "label"), [(("reward",), None), (("bad", "fair", "good"), "fair")])
def test_a_reward_models_forward_reads_nothing_from_the_device(labels: tuple[str, ...], label: str | None) -> None:
    head = RewardHead("reward_models.x", label)
    classifier = tiny_classifier(labels=labels).to(UNREADABLE)
    runner, _ = make_runner(classifier, UNREADABLE, 1 << 20, reward=head)
    tree, batch = TokenTree(runner.cache, (1, 2, 3)), Batch(100)
    for answer in ((4, 5), (4, 6)):
        batch.request_logits(tree, tree.insert(answer))
    rewards = runner.forward(batch)
    assert (rewards.shape, rewards.device.type) == ((2, 1), "meta")


@pytest.mark.parametrize(
    "kinds",
    [
        [Sampling(temperature=0.0)],
        [Sampling()],
        [Sampling(temperature=0.7)],
        [Sampling(top_p=0.9)],
        [Sampling(top_k=5)],
        [Sampling(temperature=0.0), Sampling(), Sampling(temperature=0.5, top_k=3, top_p=0.5), Sampling()],
        [Sampling(presence_penalty=1.0, min_p=0.1, logit_bias=((3, 1.0),), bad_words=((5, 6), (7,)), min_tokens=9)],
    ],
    ids=["greedy", "plain", "cool", "nucleus", "top-k", "mixed", "adjusted"],
)
def test_a_draw_reads_nothing_but_its_result(kinds: list[Sampling]) -> None:
    def draw(kind: Sampling) -> Draw:
        processor = LogitsProcessor(LogitsRules(kind, (1, 2), (257,)), (3, 4, 5)) if kind.needs_processor else None
        return Draw(kind, 0.5, processor)

    logits = torch.empty(len(kinds), 3000, device=UNREADABLE)
    tokens, logprobs = sampling._draw(logits, [draw(kind) for kind in kinds])
    assert (tokens.shape, logprobs.shape) == ((len(kinds),), (len(kinds),))
    assert tokens.device.type == logprobs.device.type == "meta"
