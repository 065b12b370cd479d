"""A vLLM that the server runs itself: killed under ten guided streams, it comes back and no answer changes."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import pytest_asyncio
import yaml

from tests.remote.test_killed_streams import Stream, read_all
from tests.replica import Replica, eventually, served, status_of
from tests.vllm.conftest import LARGE, TUNED, UNTUNED

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]

STREAMS, TOKENS = 10, 72
START_S = 300  # vLLM takes a minute or two to start
ON_CPUS = ["--dtype=float32", "--enforce-eager", "--no-enable-chunked-prefill", "--max-num-seqs=64"]


@pytest.fixture(scope="module")
def server(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    large = {"backend": "vllm", "model": LARGE, "command": program, "max_model_len": 2048, "extra_args": ON_CPUS}
    guidance = {
        f"guided-{w}": {"method": "cbs", "pairs": {"positive": 1.0}, "beam_width": w, "successors": 2} for w in (1, 2)
    }
    config = {
        "large_models": {"far": large},
        "pairs": {"positive": {"tuned": TUNED, "untuned": UNTUNED, "prompt_template": ""}},
        "served_models": {
            name: {"large": "far", "guidance": {**g, "chunk_length": 12}} for name, g in guidance.items()
        },
        "workers": {"dtype": "float32", "threads": 1},
    }
    path: Path = tmp_path_factory.mktemp("managed") / "server.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", "--port=0", f"--config={path}"]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0", "HF_HUB_OFFLINE": "1"}
    with served(command, variables, START_S) as running:
        yield running
        family = psutil.Process(running.process.pid).children(recursive=True)
        assert len(family) > 2
        running.send(signal.SIGTERM)
        assert running.left() == 0
        eventually(lambda: not any(child.is_running() for child in family))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: Replica) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=START_S) as client:
        yield client


def streams() -> list[Stream]:
    """Greedy ones, and others by seed."""
    asked = [{"model": "guided-1", "seed": 7, "temperature": 0.8}, {"model": "guided-2", "temperature": 0}]
    asked += [{"model": "guided-2", "seed": 8, "temperature": 0.8}]
    bodies = [asked[i % 3] | {"prompt": f"Review number {i}: This movie", "max_tokens": TOKENS} for i in range(STREAMS)]
    return [Stream(body | {"ignore_eos": True}) for body in bodies]


def vllm_of(server: Replica) -> psutil.Process:
    """The process `vllm serve`, the child of its guard."""
    [guard] = [c for c in psutil.Process(server.process.pid).children() if any("guard.py" in a for a in c.cmdline())]
    [vllm] = guard.children()
    return vllm


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(client: httpx.AsyncClient) -> list[str]:
    answers = await read_all(client, streams())
    assert len(set(answers)) == STREAMS
    assert await read_all(client, streams()) == answers, "they come again"
    return answers


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])  # at the latter vLLM ends choices with "abort"
async def test_ten_guided_streams_end_as_if_nothing_had_happened(
    server: Replica, client: httpx.AsyncClient, undisturbed: list[str], number: signal.Signals
) -> None:
    before = await restarts(client)
    vllm = vllm_of(server)
    family = vllm.children(recursive=True)
    assert family, "its engine is a process of its own"
    interrupted = streams()
    reading = asyncio.create_task(read_all(client, interrupted))
    async with asyncio.timeout(START_S):
        await asyncio.gather(*(stream.begun.wait() for stream in interrupted if stream.body["model"] == "guided-1"))
    assert not any(stream.finish_reason for stream in interrupted)
    vllm.send_signal(number)
    killed_at = time.monotonic()
    eventually(lambda: not any(child.is_running() for child in [vllm, *family]))
    assert await asyncio.to_thread(status_of, f"{server.url}/ready") == 503

    assert await reading == undisturbed
    print(f"{number.name}: back, and all answers there, after {time.monotonic() - killed_at:.1f} s")
    assert status_of(f"{server.url}/ready") == 200
    assert vllm_of(server).pid != vllm.pid
    assert await restarts(client) == before + 1


async def restarts(client: httpx.AsyncClient) -> float:
    """As the metrics count them."""
    metrics = (await client.get("/metrics")).text
    [count] = re.findall(r'^w2s_worker_restarts_total\{worker="vllm:far"\} (\S+)$', metrics, re.MULTILINE)
    return float(count)


async def test_the_key_is_in_the_environment_alone(server: Replica, client: httpx.AsyncClient) -> None:
    vllm = vllm_of(server)
    key, url = vllm.environ()["VLLM_API_KEY"], next(a for a in vllm.cmdline() if a.startswith("--port=")).split("=")[1]
    lines = [argument for process in psutil.process_iter(["cmdline"]) for argument in process.info["cmdline"] or ()]
    assert not [argument for argument in lines if key in argument]
    assert key not in "".join(server.seen) + (await client.get("/metrics")).text
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{url}/v1") as stranger:
        assert (await stranger.get("/models")).status_code == 401
        assert (await stranger.get("/models", headers={"authorization": f"Bearer {key}"})).status_code == 200
