"""A scheduler's step that fails: a broken forward, no memory, a broken device, and a bug in one request."""

from __future__ import annotations

import pytest
import torch

from tests.worker.test_scheduler import NO_END, drain, drawn, sample_job, state, worker_models
from w2s_core.pool.messages import JobFailed, Row
from w2s_core.worker import step_outputs


def test_a_failing_forward_fails_its_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = worker_models()
    subject.handle(sample_job(1, [Row((), 1, 5)]))
    with monkeypatch.context() as patch:
        patch.setattr(subject._schedulers["m"].runner, "_model", broken_model)
        [failed] = subject.step()
    assert isinstance(failed, JobFailed)
    assert failed.message == "OutOfMemoryError", "the text may name files, and reaches the client"
    assert state(subject).sessions == {"m": 0}
    subject.handle(sample_job(1, [Row((), 1, 5)]))
    assert len(drawn(drain(subject), 1, 1)[0]) == 5


def test_kv_of_a_failed_forward_is_not_cached_as_a_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch had marked the prompt as computed before the forward failed."""
    job = sample_job(1, [Row((), 1, 5)], tuple(range(40)))
    healthy = worker_models()
    healthy.handle(job)
    expected = drawn(drain(healthy), 1, 1)
    subject = worker_models()
    with monkeypatch.context() as patch:
        patch.setattr(subject._schedulers["m"].runner, "_model", broken_model)
        subject.handle(job)
        [failed] = subject.step()
    assert isinstance(failed, JobFailed)
    subject.handle(job)
    assert drawn(drain(subject), 1, 1) == expected


def test_no_memory_for_the_draw_fails_its_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sessions: one was in the batch whose draw failed, the other comes after it and loses nothing."""
    subject = worker_models()
    subject.handle(sample_job(1, [Row((), 1, 5)]))
    with monkeypatch.context() as patch:
        patch.setattr(step_outputs, "draw_tokens", broken_model)
        [failed] = subject.step()
    assert isinstance(failed, JobFailed)
    assert failed.message == "OutOfMemoryError", "the text may name files, and reaches the client"
    assert failed.field is None
    assert state(subject).slots_used == {"m": 0}
    subject.handle(sample_job(2, [Row((), 1, 5)]))
    assert len(drawn(drain(subject), 2, 1)[0]) == 5


def test_a_move_of_kv_that_fails_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The region has moved in some layers: whoever decodes on would do so on the wrong keys."""

    def broken_move(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory in /a/file")

    subject = worker_models(cache_bytes=256 * 200)
    for number in (1, 2):
        subject.handle(sample_job(number, [Row((), number, 90)], sampling=NO_END))
    monkeypatch.setattr(subject._schedulers["m"].runner.cache, "_copy", broken_move)
    with pytest.raises(torch.OutOfMemoryError):
        drain(subject)


def test_a_device_that_cannot_run_any_more_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """After such an error no kernel runs in this process any more: the pool must start another."""

    def lost(*_: object) -> None:
        raise torch.AcceleratorError("device-side assert triggered")

    subject = worker_models()
    subject.handle(sample_job(1, [Row((), 1, 5)]))
    monkeypatch.setattr(step_outputs, "draw_tokens", lost)
    with pytest.raises(torch.AcceleratorError):
        subject.step()


def broken_model(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("out of memory in /a/file")
