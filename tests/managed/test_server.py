"""A managed vLLM from start to end: health, log, key, restarts, and no process that stays."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.managed.conftest import alive, processes_of, vllm_of
from tests.pool.test_restarts import Clock, until
from tests.replica import SOON
from w2s_core.config import ManagedLargeModelConfig
from w2s_core.errors import ConfigurationError, UnavailableError
from w2s_core.managed import process
from w2s_core.managed.command import find_program
from w2s_core.managed.server import ManagedVLLM
from w2s_core.pool.backoff import Backoff
from w2s_core.telemetry.metrics import Metrics


def managed(model: Path, *, heartbeat_timeout_s: float = SOON, clock: Clock | None = None, **keys: Any) -> ManagedVLLM:
    config = ManagedLargeModelConfig(model=str(model), **{"start_timeout_s": float(SOON)} | keys)
    clock = clock or Clock()
    return ManagedVLLM(
        "llama",
        config,
        find_program("llama", config),
        str(model),
        heartbeat_timeout_s=heartbeat_timeout_s,
        backoff=Backoff(clock, clock.sleep),
        metrics=Metrics(),
    )


@asynccontextmanager
async def running(server: ManagedVLLM) -> AsyncIterator[ManagedVLLM]:
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


def restarts(server: ManagedVLLM) -> float | None:
    return server._metrics.registry.get_sample_value("w2s_worker_restarts_total", {"worker": "vllm:llama"})


async def test_it_starts_and_stops_with_all_its_processes(model: Path) -> None:
    server = managed(model)
    assert not server.ready
    async with running(server):
        assert server.ready
        assert len(processes_of(model)) == 3, "a guard, vLLM and its engine"
    assert not server.ready
    await until(lambda: not processes_of(model))


async def test_the_command_line_has_the_keys_and_not_the_api_key(model: Path) -> None:
    extra = ("--gpu-memory-utilization", "0.8")
    async with running(managed(model, tensor_parallel_size=4, max_model_len=512, quantization="fp8", extra_args=extra)):
        argv = json.loads((model / "argv").read_text())[1:]
        vllm = vllm_of(model)
        key = vllm.environ()["VLLM_API_KEY"]
        assert len(key) >= 32
        lines = [argument for process in psutil.process_iter(["cmdline"]) for argument in process.info["cmdline"] or ()]
        assert not [argument for argument in lines if key in argument]
    [port] = [argument for argument in argv if argument.startswith("--port=")]
    assert [argument for argument in argv if argument != port] == [
        *("serve", str(model), "--served-model-name=llama", "--host=127.0.0.1", "--tensor-parallel-size=4"),
        *("--quantization=fp8", "--max-model-len=512", "--disable-uvicorn-access-log", *extra),
    ]


async def test_nothing_is_open_before_the_start_nor_after_the_end(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = psutil.Process()
    before = own.num_fds()
    server = managed(model)
    assert own.num_fds() == before
    monkeypatch.setenv("FAKE_VLLM", "fail")
    with pytest.raises(ConfigurationError):
        await server.start()
    assert own.num_fds() == before


async def test_each_has_a_key_of_its_own(model: Path) -> None:
    async with running(managed(model)) as one, running(managed(model)) as other:
        assert one.api_key != other.api_key
        assert one.url != other.url


async def test_its_lines_are_logged_at_their_level_without_the_key(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(managed(model)) as server:
        key = server.api_key
    lines = [record for record in caplog.records if record.name == "w2s.vllm"]
    said = [(record.levelname, record.getMessage(), record.large_model) for record in lines]  # type: ignore[attr-defined]
    assert said[0][0] == "INFO"
    assert said[0][1].startswith("vLLM of llama: (APIServer pid=")
    assert ("WARNING", "vLLM of llama: WARNING 11-27 04:22:29 [api.py:2] the key is [key]", "llama") in said
    assert key not in caplog.text


async def test_one_that_fails_is_reported_with_its_last_lines(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "fail")
    server = managed(model)
    with pytest.raises(
        ConfigurationError, match=r"^large_models\.llama: vLLM has ended before it was healthy"
    ) as error:
        await server.start()
    assert "ValueError: no such model\n" in str(error.value)
    assert "vllm serve has ended with status 3" in str(error.value)
    assert server.api_key not in str(error.value)
    await until(lambda: not processes_of(model))


async def test_one_that_cannot_be_run_is_reported(model: Path) -> None:
    server = managed(model)
    program = server._program
    Path(program).write_text("#!/no/such/interpreter\n")  # noqa: ASYNC240
    with pytest.raises(ConfigurationError, match=f"{program} cannot be run: No such file or directory"):
        await server.start()


async def test_one_that_is_never_healthy_is_given_up(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "wait")
    with pytest.raises(ConfigurationError, match=r"llama: vLLM was not healthy within 3 s \(start_timeout_s\)"):
        await managed(model, start_timeout_s=3.0).start()
    await until(lambda: not processes_of(model))


async def test_a_start_that_is_cancelled_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "wait")
    starting = asyncio.create_task(managed(model).start())
    await until(lambda: len(processes_of(model)) == 3)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await until(lambda: not processes_of(model))


async def test_one_that_does_not_stop_is_killed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "stay")
    monkeypatch.setattr("w2s_core.managed.process.STOP_TIMEOUT_S", 0.1)
    async with running(managed(model)):
        pass
    assert not processes_of(model)


def its_guard(model: Path) -> psutil.Process:
    parent = vllm_of(model).parent()
    assert parent is not None
    return parent


@pytest.fixture
def engine_in_a_session_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_SESSION", "1")


@pytest.mark.usefixtures("engine_in_a_session_of_its_own")
async def test_an_engine_that_left_the_process_group_ends_too(model: Path) -> None:
    async with running(managed(model)) as server:
        before = processes_of(model)
        assert len({os.getpgid(process.pid) for process in before}) == 2
        vllm_of(model).kill()
        await until(lambda: not server.ready)
        await until(lambda: server.ready)
        assert not alive(before)
    assert not processes_of(model)


@pytest.mark.parametrize("victim", [vllm_of, its_guard], ids=["vllm", "guard"])
async def test_one_that_is_killed_is_replaced_with_all_its_processes(
    model: Path, victim: Callable[[Path], psutil.Process], caplog: pytest.LogCaptureFixture
) -> None:
    async with running(managed(model)) as server:
        before = processes_of(model)
        assert restarts(server) == 0
        victim(model).kill()
        await until(lambda: not server.ready)
        await until(lambda: server.ready)
        assert restarts(server) == 1
        assert not alive(before)
        assert len(processes_of(model)) == 3
    assert "vLLM of llama was lost; starting it again" in caplog.text


async def test_one_that_cannot_start_again_backs_off(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    async with running(managed(model, clock=clock)) as server:
        (model / "then").write_text("fail")
        vllm_of(model).kill()
        await until(lambda: len(clock.sleeps) >= 2)
        (model / "then").unlink()
        await until(lambda: server.ready)
        assert clock.sleeps[:2] == [0.5, 1]
    assert "vLLM of llama could not be restarted: vLLM has ended before it was healthy" in caplog.text


@pytest.mark.usefixtures("engine_in_a_session_of_its_own")
async def test_one_that_is_silent_is_killed_and_replaced(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(managed(model, heartbeat_timeout_s=0.4)) as server:
        vllm = vllm_of(model)
        async with httpx.AsyncClient(base_url=server.url) as client:
            await client.post("/sicken")
        await until(lambda: not vllm.is_running())
        await until(lambda: server.ready)
        assert "vLLM of llama has been silent for 0.4 s and is killed" in caplog.text


async def test_a_guard_that_is_stopped_is_killed_as_well(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_SPARE_S", 0.2)
    async with running(managed(model, heartbeat_timeout_s=0.4)) as server:
        first = server._process
        assert first is not None
        for pid in (vllm_of(model).pid, first.pid):
            os.kill(pid, signal.SIGSTOP)
        await until(lambda: not server.ready)
        await until(lambda: server.ready)
        assert server._process is not first


async def test_a_call_waits_until_it_is_back(model: Path) -> None:
    async with running(managed(model)) as server:
        await server.wait_until_up(verify=False)
        os.kill(vllm_of(model).pid, signal.SIGKILL)
        await server.wait_until_up(verify=True)  # at once, whether or not the death is known by now
        assert restarts(server) == 1
        assert server.ready


async def test_a_call_does_not_wait_for_ever(model: Path) -> None:
    async with running(managed(model, start_timeout_s=8.0)) as server:
        (model / "then").write_text("wait")
        vllm_of(model).kill()
        with pytest.raises(UnavailableError, match="The vLLM of `llama` has not come back in time"):
            await server.wait_until_up(verify=True)


async def test_a_call_that_waits_when_the_server_stops_gets_an_error(model: Path) -> None:
    async with running(managed(model)) as server:
        (model / "then").write_text("wait")
        vllm_of(model).kill()
        await until(lambda: not server.ready)
        waiting = asyncio.create_task(server.wait_until_up(verify=False))
        await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="stopped"):
        await waiting


def test_a_program_that_is_missing_is_named_with_what_to_install(model: Path) -> None:
    config = ManagedLargeModelConfig(model=str(model), command="vllm-of-nobody")
    message = r"^large_models\.llama\.command: .*`vllm-of-nobody`.* an environment of its own.*pip install vllm.*$"
    with pytest.raises(ConfigurationError, match=message):
        find_program("llama", config)
