"""Runs `vllm serve` on the CPU in a child process on a free port of 127.0.0.1."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx

from benchmarks.server_process import Server

MODEL = "large"  # the served model's name
CONTEXT_LENGTH = 2048  # tokens
_MAX_ROWS = 64
_START_TIMEOUT_S = 300.0  # vLLM compiles the model, which takes one or two minutes
_STOP_TIMEOUT_S = 30.0
_POLL_S = 0.5
_LOG_LINES = 30


@asynccontextmanager
async def vllm_process(
    program: str,
    folder: str,
    log: Path,
    *,
    dtype: str = "float32",
    threads: int = 2,
    kv_gib: int = 2,
    options: Sequence[str] = (),
) -> AsyncIterator[Server]:
    """Serves the model in `folder` as MODEL by the command `program`; its output goes to the file `log`.

    Raises RuntimeError with the end of the log if it is not healthy within five minutes.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [program, "serve", folder, "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", dtype, "--max-model-len", str(CONTEXT_LENGTH), "--max-num-seqs", str(_MAX_ROWS)]
    # vLLM 0.32 on CPUs crashes ("CPU Generator does not use offset") on a seeded prompt that is prefilled in chunks.
    command += ["--no-enable-chunked-prefill"]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, *options, stdout=output, stderr=output, env=_environment(threads, kv_gib), start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        if not await _wait_until_healthy(url, process):
            raise RuntimeError(f"vLLM did not start. The end of its log:\n{_end_of(log)}")
        yield Server(url, process.pid)
    finally:
        await _stop(process)


def _environment(threads: int, kv_gib: int) -> dict[str, str]:
    """Binds vLLM to all given cores: by default it leaves one to its scheduler, which halves its speed on two cores."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": str(kv_gib),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return os.environ | variables


async def _wait_until_healthy(url: str, process: asyncio.subprocess.Process) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(_START_TIMEOUT_S), httpx.AsyncClient(base_url=url) as client:
            while process.returncode is None:
                with suppress(httpx.TransportError):
                    if (await client.get("/health")).status_code == httpx.codes.OK:
                        return True
                await asyncio.sleep(_POLL_S)
    return False


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Stops vLLM, and kills its engine and worker processes, which are in the same session."""
    with suppress(ProcessLookupError):
        process.terminate()
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
