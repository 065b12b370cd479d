"""Runs `w2s serve` in a child process on a free port of 127.0.0.1."""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import yaml

from w2s_core.config import EngineConfig

_START_TIMEOUT_S = 180
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its base URL and process id."""

    url: str
    pid: int


@asynccontextmanager
async def server_process(config: EngineConfig) -> AsyncIterator[Server]:
    """Starts a server and waits until its models are loaded; leaving the context stops it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="w2s-bench-") as folder:
        path = Path(folder) / "server.yaml"
        path.write_text(yaml.safe_dump(_as_yaml(config, port)), encoding="utf-8")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "from server.cli import main; main()",
            "serve",
            "--config",
            str(path),
            "--log-level",
            "error",
            stdout=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            await _ready(url, process)
            yield Server(url, process.pid)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def _as_yaml(config: EngineConfig, port: int) -> dict[str, object]:
    content = asdict(config)
    del content["limits"], content["traces"]  # in a file these are keys of `server`
    content["workers"]["devices"] = list(config.workers.devices)
    return content | {"server": {"port": port, "max_queued_rows": config.limits.max_queued_rows}}


async def _ready(url: str, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(_START_TIMEOUT_S), httpx.AsyncClient(base_url=url) as client:
        while True:
            if process.returncode is not None:
                raise RuntimeError("the server exited; see stderr for the reason")
            try:
                if (await client.get("/ready")).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(_POLL_S)
