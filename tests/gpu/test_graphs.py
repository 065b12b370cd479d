"""Joint attention and CUDA graphs on a GPU: logits of a step by session, in a fast kernel, and one wait per step."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.gpu.test_step import waits_are
from tests.tiny import FAMILIES, tiny_classifier, tiny_model
from tests.worker.test_cuda_graphs import Reading
from tests.worker.test_joint_attention import THREE, batch_for
from tests.worker.test_reward_model import HEAD
from tests.worker.test_scheduler import drain, drawn, sample_job
from w2s_core.pool.messages import Row, Sampling
from w2s_core.worker.cuda_graphs import CUDAGraphCapture
from w2s_core.worker.loading import make_runner
from w2s_core.worker.model_runner import ModelRunner
from w2s_core.worker.models import WorkerModels
from w2s_core.worker.token_tree import TokenTree

STEPS = 8


def steps_of(runner: ModelRunner) -> list[torch.Tensor]:
    """The logits of steps of a few shapes: sessions end, answers end, and texts grow."""
    trees = [TokenTree(runner.cache, (*range(i, i + 9),)) for i in range(4)]
    runner.forward(batch_for(trees, [()]))
    found = []
    for step in range(3 * STEPS):
        alive, rows = trees if step < STEPS else trees[1:], range(4 if step < 2 * STEPS else 3)
        found.append(runner.forward(batch_for(alive, [(row, *range(step)) for row in rows])))
    return found


class Counted:
    """A capture that counts what it captures and how often that is replayed."""

    def __init__(self, device: torch.device) -> None:
        self.captures = self.replays = 0
        self._capture = CUDAGraphCapture(device)

    def __call__(self, run: Any) -> Any:
        self.captures += 1
        replay = self._capture(run)

        def counted() -> torch.Tensor:
            self.replays += 1
            return replay()

        return counted


@pytest.mark.parametrize("family", FAMILIES)
def test_joint_and_captured_steps_are_those_by_session(cuda: torch.device, family: str) -> None:
    by_session, _ = make_runner(tiny_model(family).to(cuda), cuda, 1 << 20)
    by_session.joint = False
    jointly, _ = make_runner(tiny_model(family).to(cuda), cuda, 1 << 20)
    captured, _ = make_runner(tiny_model(family).to(cuda), cuda, 1 << 20, capture=(capture := Counted(cuda)))
    expected = steps_of(by_session)
    torch.testing.assert_close(steps_of(jointly), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(steps_of(captured), expected, atol=1e-4, rtol=1e-4)
    assert capture.captures
    assert capture.replays > STEPS


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gemma2"])
def test_joint_attention_runs_in_the_memory_efficient_kernel(cuda: torch.device, family: str) -> None:
    """Gemma 2's soft-capped attention is computed without a kernel of its own."""
    runner, _ = make_runner(tiny_model(family).to(cuda, torch.bfloat16), cuda, 1 << 20)
    trees = [TokenTree(runner.cache, prompt) for prompt in THREE]
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):  # which raises an error where it cannot
        assert runner.forward(batch_for(trees, [(1, 2), (3,)])).isfinite().all()


def test_rewards_of_captured_steps(cuda: torch.device) -> None:
    plain, _ = make_runner(tiny_classifier().to(cuda), cuda, 1 << 20, reward=HEAD)
    captured, _ = make_runner(
        tiny_classifier().to(cuda), cuda, 1 << 20, reward=HEAD, capture=(capture := Counted(cuda))
    )
    torch.testing.assert_close(steps_of(captured), steps_of(plain), atol=1e-4, rtol=1e-4)
    assert capture.replays


def test_answers_of_captured_steps_and_one_wait(cuda: torch.device) -> None:
    answers = []
    for capture in (None, Counted(cuda)):
        subject = WorkerModels({"m": make_runner(tiny_model().to(cuda), cuda, 1 << 22, capture=capture)})
        for number in range(1, 5):
            sampling = Sampling(ignore_eos=True)  # so that all steps have one shape
            subject.handle(sample_job(number, [Row((), number, 40)] * 2, tuple(range(number, 9)), sampling=sampling))
        outcomes = [outcome for _ in range(10) for outcome in subject.step()]
        before = capture.replays if capture else 0
        with waits_are("warn"), pytest.warns(UserWarning, match="synchronizing CUDA operation") as waits:
            outcomes += subject.step()
        assert len(waits) == 1, [str(wait.message) for wait in waits]
        assert capture is None or capture.replays == before + 1
        outcomes += drain(subject)
        answers.append([drawn(outcomes, number, 2) for number in range(1, 5)])
    assert answers[0] == answers[1]


def test_a_failed_capture_leaves_the_device_as_it_was(cuda: torch.device, caplog: pytest.LogCaptureFixture) -> None:
    plain, _ = make_runner(tiny_model().to(cuda), cuda, 1 << 20)
    model: Any = tiny_model()
    model.model.layers[1].mlp = Reading(model.model.layers[1].mlp)
    runner, _ = make_runner(model.to(cuda), cuda, 1 << 20, capture=(capture := Counted(cuda)), name="m")
    stream = torch.cuda.current_stream(cuda)
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(steps_of(runner), steps_of(plain), atol=1e-4, rtol=1e-4)
    assert (capture.captures, capture.replays) == (1, 0)
    assert torch.cuda.current_stream(cuda) == stream
    [message] = caplog.messages
    assert message.startswith("m runs without CUDA graphs: its step could not be captured: ")
    other, _ = make_runner(tiny_model().to(cuda), cuda, 1 << 20, capture=(again := Counted(cuda)))
    steps_of(other)
    assert again.replays, "the next model's can be captured"
