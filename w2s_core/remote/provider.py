"""HTTP client for one remote model: connection pool, concurrency limit, retries, fail-over, circuit breakers.

A retry is decided in `Provider._call`, an endpoint chosen in `Endpoints.choose`, a failure classified in `faults`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from w2s_core.config import ProviderConfig
from w2s_core.errors import ConfigurationError, UnavailableError, UpstreamTimeoutError
from w2s_core.remote.endpoints import Endpoint, Endpoints
from w2s_core.remote.exchange import MAX_ANSWER_BYTES, Exchange
from w2s_core.remote.faults import Fault, FaultClassifier
from w2s_core.remote.http_client import make_http_client

logger = logging.getLogger(__name__)

MAX_RETRY_AFTER_S = 30.0  # the longest `Retry-After` that a call honours
_STOPPED_RETRY_S = 5
_STREAMED_TOKEN_BYTES = 2048  # of one event, with 20 alternatives
_backoff = wait_random_exponential(multiplier=0.5, max=8)  # seconds, with full jitter so that callers spread

T = TypeVar("T")


class EventReader(Protocol):
    """Takes the events of one streamed response."""

    def feed(self, event: dict[str, Any], /) -> None:
        """Raises UpstreamError for an event that cannot be used."""
        ...


R = TypeVar("R", bound=EventReader)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a call, for metrics.

    `status`: the HTTP status, or unreachable, timeout, dropped, malformed, too_large, redirect, cancelled. `number`: 1
    for a call's first attempt, more for its retries.
    """

    provider: str
    status: str
    seconds: float
    number: int


@dataclass(eq=False, slots=True)
class Call(Generic[T]):
    """A call and its attempts so far. `attempt` makes one, at a base_url and within so many seconds."""

    attempt: Callable[[Exchange, str, float], Awaitable[T]]
    affinity: int | None
    on_cancelled: Callable[[], None] = lambda: None
    tried: set[Endpoint] = field(default_factory=set)
    counted: set[Endpoint] = field(default_factory=set)  # whose breakers have counted this call's failure
    attempts: int = 0
    deadline: float = math.inf  # of all attempts together; set when the first one begins


class Provider:
    """Calls one model at one or several base_urls. `async with` opens and closes the connections.

    `name` is the model's in the configuration, for messages. `on_attempt` is called after every attempt. `clock` and
    `sleep` take seconds. Raises ConfigurationError for an invalid `config`.
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
        self._api_key = api_key
        self._on_attempt = on_attempt
        self._clock = clock
        self._sleep = sleep
        self._max_answer_bytes = max_answer_bytes
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._configure(config)
        self._client: httpx.AsyncClient | None = None
        self._exchange: Exchange | None = None

    def _configure(self, config: ProviderConfig) -> None:
        self.config = config
        self._endpoints = Endpoints(
            config.base_urls, failures=config.breaker_failures, cooldown_s=config.breaker_cooldown_s, clock=self._clock
        )

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
        """Creates the HTTP client; the first calls make the connections."""
        self._client = make_http_client(self.config, self._api_key)
        classifier = FaultClassifier(self.name, self.config.model, self._api_key)
        self._exchange = Exchange(self._client, classifier, self._max_answer_bytes)

    async def stop(self) -> None:
        """Closes the connections; calls in flight fail."""
        client, self._client, self._exchange = self._client, None, None
        if client is not None:
            await client.aclose()

    @property
    def available(self) -> bool:
        """Whether a call would be attempted now: the client is started and a circuit breaker allows it."""
        return self._exchange is not None and self._endpoints.available

    @property
    def calls(self) -> int:
        """Calls in flight."""
        return self._endpoints.calls

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        affinity: int | None = None,
        on_cancelled: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Posts `body` to `base_url` + `path` and returns the JSON object of the response.

        Calls are retried, so they must be idempotent. Those of the same `affinity`, a hash of the prompt, go to one
        base_url while it is healthy. `on_cancelled` is called if the caller is cancelled while the provider has the
        call, not while it waits for its turn or for a retry.

        Raises UpstreamError, UpstreamTimeoutError, UpstreamRefusedError and UpstreamContextLengthError, and at once
        UnavailableError where every circuit breaker is open.
        """
        content = _encode(body)
        attempt = lambda exchange, url, timeout_s: exchange("POST", url + path, content, timeout_s)  # noqa: E731
        return await self._call(Call(attempt, affinity, on_cancelled))

    async def stream(
        self,
        path: str,
        body: Mapping[str, Any],
        reader: Callable[[], R],
        *,
        affinity: int | None = None,
        tokens: int = 0,
    ) -> R:
        """Posts `body`, which asks for a stream, as `post` does.

        Each attempt feeds the response's events to a reader of its own; that of the successful attempt is returned.
        `tokens`: how many the response may have, for which it may be larger.
        """
        content = _encode(body)

        async def attempt(exchange: Exchange, url: str, timeout_s: float) -> R:
            events = reader()
            await exchange.stream(url + path, content, events.feed, timeout_s, tokens * _STREAMED_TOKEN_BYTES)
            return events

        return await self._call(Call(attempt, affinity))

    async def get(self, path: str) -> dict[str, Any]:
        """Gets `base_url` + `path`, as `post` does."""
        attempt = lambda exchange, url, timeout_s: exchange("GET", url + path, None, timeout_s)  # noqa: E731
        return await self._call(Call(attempt, None))

    async def _call(self, call: Call[T]) -> T:
        def wait(state: RetryCallState) -> float:
            return self._wait_s(call, state)

        retrying = AsyncRetrying(
            sleep=self._sleep,
            stop=lambda state: self._is_over(call, state),
            wait=wait,
            retry=retry_if_exception(lambda error: self._may_retry(call, error)),
            reraise=True,
        )
        try:
            return await retrying(self._attempt, call)
        except Fault as fault:
            raise fault.error from None

    def _may_retry(self, call: Call[T], error: BaseException) -> bool:
        """Whether another attempt may succeed. One that timed out would most likely do so again at its base_url."""
        if not isinstance(error, Fault) or not error.transient:
            return False
        return not isinstance(error.error, UpstreamTimeoutError) or self._endpoints.can_fail_over(call.tried)

    def _is_over(self, call: Call[T], state: RetryCallState) -> bool:
        """Whether the call may have no further attempt, or no time is left for one."""
        return call.attempts > self.config.max_retries or self._clock() + state.upcoming_sleep >= call.deadline

    def _wait_s(self, call: Call[T], state: RetryCallState) -> float:
        """Seconds before a retry: 0 where another base_url can take over, else `Retry-After` plus a random back-off."""
        if self._endpoints.can_fail_over(call.tried):
            return 0.0
        fault = state.outcome.exception() if state.outcome else None
        retry_after_s = fault.retry_after_s if isinstance(fault, Fault) and fault.retry_after_s else 0.0
        return min(retry_after_s, MAX_RETRY_AFTER_S) + _backoff(state)

    async def _attempt(self, call: Call[T]) -> T:
        # Checked before and after queueing: no call waits for a provider that is down.
        if not self._endpoints.available:
            raise self._unavailable()
        async with self._slots:
            endpoint = self._endpoints.choose(call.affinity, call.tried)
            if endpoint is None:
                raise self._unavailable()
            if self._exchange is None:
                raise UnavailableError("The server is shutting down.", _STOPPED_RETRY_S)
            call.attempts += 1
            with self._recorded(endpoint, call):
                return await call.attempt(self._exchange, endpoint.url, self._timeout_s(call, endpoint))

    def _timeout_s(self, call: Call[T], endpoint: Endpoint) -> float:
        """Seconds that an attempt may take: half of what is left if another base_url is to have a turn."""
        if call.attempts == 1:
            call.deadline = self._clock() + self.config.call_timeout_s
        left_s = call.deadline - self._clock()
        return left_s / 2 if self._endpoints.can_fail_over({*call.tried, endpoint}) else left_s

    @contextmanager
    def _recorded(self, endpoint: Endpoint, call: Call[T]) -> Iterator[None]:
        """Records an attempt's outcome in the endpoint, its circuit breaker and the metrics."""
        begun, probe, status = self._clock(), endpoint.breaker.begin_call(), "cancelled"
        endpoint.calls += 1
        try:
            yield
            status = "200"
            endpoint.breaker.record_success()
        except Fault as fault:
            status = fault.status
            call.tried.add(endpoint)
            self._record_fault(endpoint, fault, call, probe=probe)
            raise
        except BaseException as error:
            endpoint.breaker.record_cancelled(probe=probe)
            if isinstance(error, asyncio.CancelledError):
                call.on_cancelled()
            raise
        finally:
            endpoint.calls -= 1
            self._on_attempt(Attempt(self.name, status, self._clock() - begun, call.attempts))

    def _record_fault(self, endpoint: Endpoint, fault: Fault, call: Call[T], *, probe: bool) -> None:
        if fault.retry_after_s is not None:
            endpoint.paused_until = self._clock() + min(fault.retry_after_s, MAX_RETRY_AFTER_S)
        if not fault.unhealthy:
            endpoint.breaker.record_success()
            return
        # A call counts once, however often it is retried: one request that makes a provider fail must not open the
        # breaker for all others.
        was_closed = endpoint.breaker.closed
        endpoint.breaker.record_failure(probe=probe, counts=endpoint not in call.counted)
        call.counted.add(endpoint)
        if was_closed and not endpoint.breaker.closed:
            logger.warning("provider of %s: circuit breaker of %s opened (%s)", self.name, endpoint.url, fault.status)

    def _unavailable(self) -> UnavailableError:
        return UnavailableError(f"The provider of `{self.name}` is down.", self._endpoints.retry_after_s)


def _encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
