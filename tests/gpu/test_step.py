"""One step on a GPU: logits as uncached transformers', draws as on the CPU, one wait, memory that runs out."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import torch

from tests.tiny import FAMILIES, tiny_classifier, tiny_model
from tests.worker.test_proxy_tuning import family, job, run
from tests.worker.test_reward_model import HEAD, rewards
from tests.worker.test_scheduler import drain, drawn, sample_job, state
from tests.worker.test_token_tree import logits_of
from w2s_core.pool.messages import JobFailed, Row, Sampling
from w2s_core.search.randomness import root_key, successor_key, uniform
from w2s_core.worker.batch import Batch
from w2s_core.worker.loading import make_runner
from w2s_core.worker.models import WorkerModels
from w2s_core.worker.sampling import Draw, draw_tokens
from w2s_core.worker.token_tree import TokenTree


@contextmanager
def waits_are(mode: str) -> Iterator[None]:
    """What torch does when the host waits for the device: "error" or "default"."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # that this is a prototype
        torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_uncached(cuda: torch.device, family: str) -> None:
    """Branches, pruning, reused slots, prompts cut into slices; float32, which is not TF32 here."""
    reference = tiny_model(family).to(cuda)
    runner, _ = make_runner(tiny_model(family).to(cuda), cuda, 1 << 20)
    chance = random.Random(family)
    prompts = [tuple(chance.randrange(256) for _ in range(size)) for size in (21, 3)]
    trees = [TokenTree(runner.cache, prompt) for prompt in prompts]
    beams: list[list[tuple[int, ...]]] = [[()], [()]]
    for _ in range(4):
        answers = [
            [(*y, *(chance.randrange(3) for _ in range(chance.randrange(1, 6)))) for y in beam for _ in range(4)]
            for beam in beams
        ]
        leaves = [[tree.insert(y) for y in ys] for tree, ys in zip(trees, answers, strict=True)]
        for tree, nodes in zip(trees, leaves, strict=True):
            tree.prune_to(nodes)
        found = logits_of(runner, [(t, n) for t, ns in zip(trees, leaves, strict=True) for n in ns], budget=13)
        for prompt, ys, nodes in zip(prompts, answers, leaves, strict=True):
            for y, node in zip(ys, nodes, strict=True):
                with torch.inference_mode():
                    expected = reference(input_ids=torch.tensor([prompt + y], device=cuda)).logits[0, -1]
                torch.testing.assert_close(found[node], expected, atol=1e-4, rtol=1e-4)
        beams = [chance.sample(ys, 3) for ys in answers]


@pytest.mark.parametrize(
    "kind",
    [
        Sampling(temperature=0.0),
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(top_p=0.8),
        Sampling(top_k=20),
        Sampling(temperature=1.3, top_k=40, top_p=0.9),
        Sampling(presence_penalty=0.5, min_p=0.01),
    ],
    ids=["greedy", "plain", "cool", "nucleus", "top-k", "both", "adjusted"],
)
def test_draws_are_the_cpus(cuda: torch.device, kind: Sampling) -> None:
    """The same numbers give the same tokens, but where a number lies on the border of two to float32's last digits."""
    torch.manual_seed(0)
    logits = torch.randn(200, 5000) * 2
    numbers = [uniform(successor_key(root_key(4), 0, i), 0) for i in range(200)]

    def tokens(of: torch.Tensor) -> list[int]:
        return draw_tokens(of, [Draw(kind, u) for u in numbers])[0]

    middle, rounded = tokens(logits), tokens(logits + 1e-5 * torch.randn_like(logits))
    inside = [i for i in range(200) if middle[i] == rounded[i]]
    assert len(inside) > 190
    found = tokens(logits.to(cuda))
    assert [found[i] for i in inside] == [middle[i] for i in inside]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_waits_for_nothing(cuda: torch.device, family: str) -> None:
    runner, _ = make_runner(tiny_model(family).to(cuda), cuda, 1 << 20)
    tree = TokenTree(runner.cache, tuple(range(20)))
    for answers in ([(4, 5), (4, 6)], [(4, 5, 6), (4, 6, 7, 8)]):  # what a first forward sets up may wait
        batch = Batch(100)
        for answer in answers:
            batch.request_logits(tree, tree.insert(answer))
        with waits_are("error" if answers[0] == (4, 5, 6) else "default"):
            runner.forward(batch)


def test_a_decoding_step_waits_once(cuda: torch.device) -> None:
    subject = WorkerModels({"m": make_runner(tiny_model().to(cuda), cuda, 1 << 22)})
    kinds = [Sampling(), Sampling(temperature=0.0), Sampling(top_p=0.9), Sampling(temperature=0.5, top_k=9)]
    for number, kind in enumerate(kinds, start=1):
        subject.handle(sample_job(number, [Row((), number, 20)] * 2, sampling=kind))
    subject.step()
    subject.step()
    with waits_are("warn"), pytest.warns(UserWarning, match="synchronizing CUDA operation") as waits:
        subject.step()
    assert len(waits) == 1, [str(wait.message) for wait in waits]


@pytest.mark.parametrize("name", FAMILIES)
def test_eft_draws_what_it_draws_on_the_cpu(cuda: torch.device, name: str) -> None:
    """Greedy and float32, so that only the arithmetic's last digits differ."""

    def answers(device: torch.device) -> object:
        models = {role: make_runner(model.to(device), device, 1 << 22) for role, model in family(name).items()}
        return run(WorkerModels(models), job(1, sampling=Sampling(temperature=0.0)))

    assert answers(cuda) == answers(torch.device("cpu"))


def test_a_step_of_eft_waits_once(cuda: torch.device) -> None:
    models = {role: make_runner(model.to(cuda), cuda, 1 << 22) for role, model in family("llama").items()}
    subject = WorkerModels(models)
    subject.handle(job(1))
    subject.step()
    subject.step()
    with waits_are("warn"), pytest.warns(UserWarning, match="synchronizing CUDA operation") as waits:
        subject.step()
    assert len(waits) == 1, [str(wait.message) for wait in waits]


@pytest.mark.parametrize("name", FAMILIES)
def test_rewards_are_those_of_the_cpu(cuda: torch.device, name: str) -> None:
    answers = [(), (1,), (1, 2, 3), (1, 2, 9, 9), tuple(range(20))]

    def on(device: torch.device) -> tuple[float, ...]:
        runner = make_runner(tiny_classifier(name).to(device), device, 1 << 22, reward=HEAD)
        return rewards(WorkerModels({"m": runner}), answers).rewards

    assert on(cuda) == pytest.approx(on(torch.device("cpu")), abs=1e-4)


@contextmanager
def no_memory_left(device: torch.device) -> Iterator[None]:
    """Whatever this process could still take, in large pieces and small ones, is taken."""
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + 1) / total, device)
    taken: list[torch.Tensor] = []
    for size in (2**20, 2**16, 2**12, 2**9):
        with suppress(torch.OutOfMemoryError):
            while True:
                taken.append(torch.empty(size, dtype=torch.uint8, device=device))
    try:
        yield
    finally:
        taken.clear()
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def test_no_memory_on_the_device_fails_its_batch_only(cuda: torch.device) -> None:
    subject = WorkerModels({"m": make_runner(tiny_model().to(cuda), cuda, 1 << 22)})
    subject.handle(sample_job(1, [Row((), 1, 5)]))
    expected = drawn(drain(subject), 1, 1)
    subject.handle(sample_job(2, [Row((), 2, 50)] * 8, tuple(range(250))))
    with no_memory_left(cuda):
        [failed] = drain(subject)
    assert isinstance(failed, JobFailed)
    assert failed.message == "OutOfMemoryError"
    assert state(subject).slots_used == {"m": 3 + 64}, "the first session lives"
    subject.handle(sample_job(3, [Row((), 1, 5)]))
    assert drawn(drain(subject), 3, 1) == expected
