"""`w2s serve` with a managed vLLM: what the operator sees, and that nothing outlives the server, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.managed.conftest import processes_of
from tests.remote.fake_provider import MODEL
from tests.replica import ROOT, SOON, Replica, eventually, served, status_of
from tests.tiny import TEMPLATE, byte_tokenizer

SERVE = [sys.executable, "-c", "from server.cli import main; main()", "serve", "--port=0"]


@pytest.fixture
def config(model: Path) -> Path:
    byte_tokenizer(TEMPLATE).save_pretrained(model)
    return configured(model)


def configured(model: Path, **keys: object) -> Path:
    path = model.parent / "server.yaml"
    large = {MODEL: {"backend": "vllm", "model": str(model), **keys}}
    path.write_text(yaml.safe_dump({"large_models": large, "served_models": {"m": {"large": MODEL}}}))
    return path


@contextmanager
def serving(config: Path, *flags: str) -> Iterator[Replica]:
    with served([*SERVE, "--config", str(config), *flags], {}) as running:
        yield running


def run(config: Path) -> subprocess.CompletedProcess[str]:
    """A server that is expected to end by itself."""
    command = [*SERVE, "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SOON, cwd=ROOT, check=False)


def test_it_is_stopped_by_sigterm_and_its_lines_are_in_the_log(config: Path, model: Path) -> None:
    with serving(config, "--log-format=json") as server:
        assert status_of(f"{server.url}/ready") == 200
        assert len(processes_of(model)) == 3
        server.send(signal.SIGTERM)
        assert server.left() == 0
        assert not processes_of(model)
    lines = [json.loads(line) for line in server.seen]
    [warning] = [line for line in lines if line["logger"] == "w2s.vllm" and line["level"] == "WARNING"]
    assert warning["large_model"] == MODEL
    assert warning["message"].endswith("the key is [key]")
    healthy, ready = [
        next(i for i, line in enumerate(lines) if words in line["message"]) for words in ("is healthy", "Ready at")
    ]
    assert healthy < ready


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_a_server(
    config: Path, model: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_SESSION", "1")  # its engine leaves the process group
    with serving(config) as server:
        assert len(processes_of(model)) == 3
        server.send(number)
        server.left()
        eventually(lambda: not processes_of(model))


def test_nothing_outlives_a_server_that_is_killed_while_vllm_starts(
    config: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "wait")
    with subprocess.Popen([*SERVE, "--config", str(config)], cwd=ROOT, stderr=subprocess.DEVNULL) as server:
        eventually(lambda: len(processes_of(model)) == 3)
        server.kill()
        eventually(lambda: not processes_of(model))


def test_a_missing_program_is_one_line_and_status_2(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    ended = run(config)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"w2s: large_models.{MODEL}.command: there is no program `vllm`. vLLM needs")


def test_one_that_fails_ends_the_server_with_its_reason(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "fail")
    ended = run(config)
    assert ended.returncode == 1
    assert f"the models could not be loaded: large_models.{MODEL}: vLLM has ended before it was healthy" in ended.stderr
    assert "ValueError: no such model" in ended.stderr
