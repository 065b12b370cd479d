"""A remote model's provider: pooled connections, a concurrency limit, retries, fail-over, circuit breakers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any, Self

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from w2s_core.config import ProviderConfig
from w2s_core.errors import ConfigurationError, UnavailableError
from w2s_core.remote.endpoints import Endpoint, Endpoints
from w2s_core.remote.exchange import MAX_ANSWER_BYTES, Exchange
from w2s_core.remote.faults import Fault, FaultClassifier

logger = logging.getLogger(__name__)

MAX_RETRY_AFTER_S = 30.0  # no call waits longer for a provider that asks it to
_KEEPALIVE_S = 4.0  # uvicorn, under vLLM too, closes idle connections after 5: we must be first
_STOPPED_RETRY_S = 5
_backoff = wait_random_exponential(multiplier=0.5, max=8)  # seconds; all of it random, so that callers spread


@dataclass(frozen=True, slots=True)
class Attempt:
    """For counters. `status`: the HTTP status, or unreachable, timeout, dropped, malformed, too_large, cancelled.
    `number`: 1 is the first attempt of a call, later ones are its retries."""

    provider: str
    status: str
    seconds: float
    number: int


@dataclass(eq=False, slots=True)
class _Call:
    """What one call has gone through."""

    method: str
    path: str
    content: bytes | None
    affinity: int | None
    tried: set[Endpoint] = field(default_factory=set)
    blamed: set[Endpoint] = field(default_factory=set)  # counted by their breakers
    attempts: int = 0


def read_api_key(config: ProviderConfig, key: str) -> str | None:
    """The key out of the environment; None where the provider wants none. `key`: the configuration's, for the
    ConfigurationError raised when the variable is missing or cannot be a key. For the composition root only."""
    if config.api_key_env is None:
        return None
    api_key = os.environ.get(config.api_key_env, "").strip()
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ConfigurationError(f"{key}.api_key_env: the variable {config.api_key_env} holds no API key.")
    return api_key


class Provider:
    """One model behind one or several base_urls. `async with` opens and closes the connections.

    `name` is the configuration's and appears in messages. `on_attempt` is told of every attempt. `clock` and `sleep`
    are seconds. Raises ConfigurationError.
    """

    def __init__(
        self,
        name: str,
        config: ProviderConfig,
        *,
        api_key: str | None = None,
        on_attempt: Callable[[Attempt], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        if problems := list(config.problems()):
            raise ConfigurationError(f"{name}: {'; '.join(problems)}")
        self.name = name
        self.config = config
        self._api_key = api_key
        self._on_attempt = on_attempt
        self._clock = clock
        self._sleep = sleep
        self._max_answer_bytes = max_answer_bytes
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._endpoints = Endpoints(
            config.base_urls, failures=config.breaker_failures, cooldown_s=config.breaker_cooldown_s, clock=clock
        )
        self._client: httpx.AsyncClient | None = None
        self._exchange: Exchange | None = None

    def __repr__(self) -> str:
        return f"Provider({self.name!r}, {', '.join(self.config.base_urls)})"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connections are made by the first calls."""
        _keep_the_wire_out_of_logs()
        headers = {"accept": "application/json", "accept-encoding": "identity", "content-type": "application/json"}
        if self._api_key is not None:
            headers["authorization"] = f"Bearer {self._api_key}"
        config = self.config
        self._client = httpx.AsyncClient(
            headers=headers,
            verify=_certificates(),
            timeout=httpx.Timeout(config.call_timeout_s, connect=config.connect_timeout_s),
            limits=httpx.Limits(max_keepalive_connections=config.max_concurrency, keepalive_expiry=_KEEPALIVE_S),
        )
        interpreter = FaultClassifier(self.name, config.model, self._api_key)
        self._exchange = Exchange(self._client, interpreter, config.call_timeout_s, self._max_answer_bytes)

    async def stop(self) -> None:
        """Closes the connections; calls still under way fail."""
        client, self._client, self._exchange = self._client, None, None
        if client is not None:
            await client.aclose()

    @property
    def available(self) -> bool:
        """Whether a call would be tried now, rather than refused at once."""
        return self._exchange is not None and self._endpoints.available

    @property
    def calls(self) -> int:
        """Under way at the provider now."""
        return self._endpoints.calls

    async def post(self, path: str, body: Mapping[str, Any], *, affinity: int | None = None) -> dict[str, Any]:
        """The JSON object that `base_url` + `path` answers. Retried: `body` must ask for something idempotent.
        The same `affinity`, a hash of the prompt, meets the same base_url while that is healthy.

        Raises UpstreamError, UpstreamTimeoutError, UpstreamContextLengthError and, at once, UnavailableError.
        """
        content = json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
        return await self._call(_Call("POST", path, content, affinity))

    async def get(self, path: str) -> dict[str, Any]:
        """As `post`."""
        return await self._call(_Call("GET", path, None, None))

    async def _call(self, call: _Call) -> dict[str, Any]:
        def wait(state: RetryCallState) -> float:
            return self._wait_s(call, state)

        retrying = AsyncRetrying(
            sleep=self._sleep,
            stop=stop_after_attempt(1 + self.config.max_retries),
            wait=wait,
            retry=retry_if_exception(lambda error: isinstance(error, Fault) and error.transient),
            reraise=True,
        )
        try:
            return await retrying(self._attempt, call)
        except Fault as fault:
            raise fault.error from None

    def _wait_s(self, call: _Call, state: RetryCallState) -> float:
        """Nothing where another base_url can take over; else a random time, behind what the provider asked for."""
        if self._endpoints.fresh(call.tried):
            return 0.0
        fault = state.outcome.exception() if state.outcome else None
        asked = fault.retry_after_s if isinstance(fault, Fault) and fault.retry_after_s else 0.0
        return min(asked, MAX_RETRY_AFTER_S) + _backoff(state)

    async def _attempt(self, call: _Call) -> dict[str, Any]:
        if not self._endpoints.available:  # before queueing, and after: nobody waits for a provider that is down
            raise self._down()
        async with self._slots:
            endpoint = self._endpoints.choose(call.affinity, call.tried)
            if endpoint is None:
                raise self._down()
            if self._exchange is None:
                raise UnavailableError("The server is shutting down.", _STOPPED_RETRY_S)
            call.attempts += 1
            with self._watching(endpoint, call):
                return await self._exchange(call.method, endpoint.url + call.path, call.content)

    @contextmanager
    def _watching(self, endpoint: Endpoint, call: _Call) -> Iterator[None]:
        """Draws the consequences of an attempt for its endpoint and the counters."""
        begun, probe, status = self._clock(), endpoint.breaker.enter(), "cancelled"
        endpoint.calls += 1
        try:
            yield
            status = "200"
            endpoint.breaker.succeeded()
        except Fault as fault:
            status = fault.status
            call.tried.add(endpoint)
            self._judge(endpoint, fault, call, probe=probe)
            raise
        except BaseException:
            endpoint.breaker.abandoned(probe=probe)
            raise
        finally:
            endpoint.calls -= 1
            self._on_attempt(Attempt(self.name, status, self._clock() - begun, call.attempts))

    def _judge(self, endpoint: Endpoint, fault: Fault, call: _Call, *, probe: bool) -> None:
        if fault.retry_after_s is not None:
            endpoint.rests_until = self._clock() + min(fault.retry_after_s, MAX_RETRY_AFTER_S)
        if not fault.unhealthy:
            endpoint.breaker.succeeded()
            return
        # One call counts once, however often it is retried: a request that trips a provider over its bug must not
        # shut the others out.
        was_closed = endpoint.breaker.closed
        endpoint.breaker.failed(probe=probe, counts=endpoint not in call.blamed)
        call.blamed.add(endpoint)
        if was_closed and not endpoint.breaker.closed:
            logger.warning("provider of %s: %s fails (%s) and is left alone", self.name, endpoint.url, fault.status)

    def _down(self) -> UnavailableError:
        return UnavailableError(f"The provider of `{self.name}` is down.", self._endpoints.retry_after_s)


@cache
def _certificates() -> ssl.SSLContext:
    """Read once for all providers: it takes tens of milliseconds."""
    return httpx.create_ssl_context()


def _keep_the_wire_out_of_logs() -> None:
    """Both libraries log what a provider sends (status lines, headers), where it may echo our key; unless somebody
    has set their levels on purpose."""
    for name in ("httpx", "httpcore"):
        wire = logging.getLogger(name)
        if wire.level == logging.NOTSET:
            wire.setLevel(logging.WARNING)
