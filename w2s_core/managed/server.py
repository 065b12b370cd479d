"""Managed vLLM: starts `vllm serve` for one large model, waits for its health, watches, restarts and stops it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket

import httpx

from w2s_core.errors import ConfigurationError, UnavailableError, W2SError
from w2s_core.managed.command import HOST, command_line, environment
from w2s_core.managed.process import VLLMProcess
from w2s_core.pool.backoff import Backoff
from w2s_core.pool.heartbeat import Heartbeat, check_interval_s
from w2s_core.provider_config import VLLMConfig
from w2s_core.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)
_POLL_S = 0.25
_HEALTH_TIMEOUT_S = 10.0
_RETRY_AFTER_S = 5


class VLLMStartError(W2SError):
    """vLLM has ended, or its time is over, before it was healthy. The message has the last lines of its output."""


class ManagedVLLM:
    """The vLLM of the large model `name`: a component of the engine, which starts and stops it.

    `program` is the path of `vllm`, `folder` the model's folder or hub id. One that dies is started again with
    back-off, and so is one that leaves /health unanswered for `heartbeat_timeout_s` seconds. `api_key` is a random one
    that only vLLM and its provider get.
    """

    def __init__(
        self,
        name: str,
        config: VLLMConfig,
        program: str,
        folder: str,
        *,
        heartbeat_timeout_s: float = 60.0,
        backoff: Backoff | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.name = name
        self.api_key = secrets.token_urlsafe(32)
        self._program = program
        self._folder = folder
        self._config = config
        self._port = 0
        self._reserved: socket.socket | None = None
        self._start_timeout_s = config.start_timeout_s
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._backoff = backoff or Backoff()
        self._metrics = metrics or Metrics()
        self._client: httpx.AsyncClient | None = None
        self._process: VLLMProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._up = asyncio.Event()  # also once it is stopped, for those who wait
        self._stopped = False

    @property
    def ready(self) -> bool:
        """Whether it is healthy, as far as is known."""
        return self._up.is_set() and not self._stopped

    @property
    def url(self) -> str:
        """Its address, whose port is 0 until it is started."""
        return f"http://{HOST}:{self._port}"

    async def start(self) -> None:
        """Starts vLLM and returns when it is healthy. Raises ConfigurationError when it does not become so."""
        self._metrics.vllm_added(self.name)
        try:
            self._reserved = _bound_socket()
            self._port = self._reserved.getsockname()[1]
            self._client = httpx.AsyncClient(base_url=self.url, timeout=_HEALTH_TIMEOUT_S, trust_env=False)
            process = await self._launch()
        except BaseException as error:
            await self.stop()
            if isinstance(error, OSError | VLLMStartError):
                raise ConfigurationError(f"large_models.{self.name}: {error}") from None
            raise
        self._backoff.started()
        self._supervisor = asyncio.create_task(self._supervise(process))

    async def stop(self) -> None:
        """Stops vLLM. Calls that wait for it get UnavailableError."""
        self._stopped = True
        self._up.set()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        if self._process is not None:
            await self._process.stop()
        if self._client is not None:
            await self._client.aclose()
        if self._reserved is not None:
            self._reserved.close()

    async def wait_until_up(self, *, verify: bool) -> None:
        """Returns when vLLM can take calls. `verify`: asks it, because a call that has just failed may know more.

        Raises UnavailableError when it is stopped, or takes longer than its time to start.
        """
        try:
            async with asyncio.timeout(self._start_timeout_s):
                while not self.ready or (verify and not await self._is_healthy()):
                    await self._up.wait()
                    if self._stopped:
                        raise UnavailableError(f"The vLLM of `{self.name}` is stopped.", _RETRY_AFTER_S)
                    await asyncio.sleep(_POLL_S if verify else 0)
        except TimeoutError:
            raise UnavailableError(f"The vLLM of `{self.name}` has not come back in time.", _RETRY_AFTER_S) from None

    async def _launch(self) -> VLLMProcess:
        """A process that is healthy. Raises VLLMStartError, and OSError if no process can be started."""
        command = command_line(self._program, self.name, self._folder, self._port, self._config)
        process = self._process = await VLLMProcess.start(self.name, command, environment(self.api_key), self.api_key)
        try:
            async with asyncio.timeout(self._start_timeout_s):
                while not await self._is_healthy():
                    await asyncio.wait([process.ended], timeout=_POLL_S)
                    if process.ended.done():
                        raise VLLMStartError(
                            "\n  ".join(["vLLM has ended before it was healthy.", *process.last_lines])
                        )
        except TimeoutError:
            await process.stop()
            reason = f"vLLM was not healthy within {self._start_timeout_s:g} s (start_timeout_s)."
            raise VLLMStartError("\n  ".join([reason, *process.last_lines])) from None
        self._up.set()
        _log.info("vLLM of %s is healthy", self.name)
        return process

    async def _supervise(self, process: VLLMProcess) -> None:
        while True:
            await self._watch(process)
            self._up.clear()
            _log.error("vLLM of %s was lost; starting it again", self.name)
            process = await self._backoff.restart(f"vLLM of {self.name}", self._relaunch)

    async def _relaunch(self) -> VLLMProcess:
        self._metrics.vllm_restarted(self.name)
        return await self._launch()

    async def _watch(self, process: VLLMProcess) -> None:
        """Returns when the process has ended, which it kills once it has been silent for too long."""
        heartbeat, pinging = Heartbeat(self._heartbeat_timeout_s), None
        try:
            while not process.ended.done():
                if heartbeat.check() and self._up.is_set():
                    self._up.clear()
                    _log.error("vLLM of %s has been silent for %g s and is killed", self.name, heartbeat.timeout_s)
                    process.kill()
                if not heartbeat.awaiting_pong:
                    heartbeat.ping_sent()
                if pinging is None or pinging.done():
                    pinging = asyncio.create_task(self._ping(heartbeat))
                await asyncio.wait([process.ended], timeout=check_interval_s(self._heartbeat_timeout_s))
        finally:
            if pinging is not None:
                pinging.cancel()

    async def _ping(self, heartbeat: Heartbeat) -> None:
        if await self._is_healthy():
            heartbeat.pong_received()

    async def _is_healthy(self) -> bool:
        assert self._client is not None
        try:
            return (await self._client.get("/health")).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


def _bound_socket() -> socket.socket:
    """A socket bound to a free loopback port, so that nobody else is given the port, also while vLLM is down.

    It never listens. So Linux lets vLLM bind the port as well, because both set SO_REUSEADDR.
    """
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, 0))
    return bound
