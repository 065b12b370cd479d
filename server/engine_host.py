"""The engine's life cycle in the server: loading in the background, serving, draining, stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from typing import TYPE_CHECKING

from w2s_core.errors import ShuttingDownError, UnavailableError
from w2s_core.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from w2s_core.engine.engine import Engine

_LOADING_RETRY_S = 5


class HostState(Enum):
    """What happens to a new request: it is served in SERVING and answered 503 in the other states."""

    LOADING = auto()
    SERVING = auto()
    FAILED = auto()
    DRAINING = auto()


class EngineHost:
    """Loads the engine, holds it while the server runs, and stops it.

    `load` blocks (it may download models), so it runs in a thread. Either `on_ready` or `on_failure` is called once, in
    the event loop.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        on_ready: Callable[[Engine], None] = lambda _: None,
        on_failure: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        self._load = load
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._engine: Engine | None = None  # set by `_serve` alone
        self._failed = False
        self._draining = False
        self._metrics_without_engine = Metrics()

    @property
    def state(self) -> HostState:
        """The current state. Draining takes precedence, also while models load."""
        if self._draining:
            return HostState.DRAINING
        if self._failed:
            return HostState.FAILED
        return HostState.LOADING if self._engine is None else HostState.SERVING

    @property
    def draining(self) -> bool:
        """Whether the server shuts down and refuses new requests."""
        return self.state is HostState.DRAINING

    def drain(self) -> None:
        """Refuses new and waiting requests from now on; running requests continue."""
        self._draining = True
        if self._engine is not None:
            self._engine.drain()

    @property
    def ready(self) -> bool:
        """Whether a new request would be served now."""
        return not self._draining and self._engine is not None and self._engine.ready

    @property
    def engine(self) -> Engine:
        """The engine, for a new request. Raises UnavailableError in every state but SERVING."""
        if self.state is HostState.DRAINING:
            raise ShuttingDownError
        if self.state is HostState.FAILED:
            raise UnavailableError("The models could not be loaded.", _LOADING_RETRY_S)
        if self._engine is None:
            raise UnavailableError("The models are still loading. Please try again shortly.", _LOADING_RETRY_S)
        return self._engine

    @property
    def loaded_engine(self) -> Engine | None:
        """The engine once it is loaded, also while draining."""
        return self._engine

    @property
    def metrics(self) -> Metrics:
        """The engine's metrics; empty ones of the host's own while there is no engine."""
        return self._metrics_without_engine if self._engine is None else self._engine.metrics

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Starts loading on entry; stops the engine, or the loading, on exit."""
        task = asyncio.create_task(self._serve())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _serve(self) -> None:
        try:
            engine = await _in_daemon_thread(self._load)
            async with engine:
                self._engine = engine
                self._on_ready(engine)
                await asyncio.Event().wait()  # until cancelled
        except Exception as error:
            self._failed = True
            self._on_failure(error)
        finally:
            self._engine = None


async def _in_daemon_thread(load: Callable[[], Engine]) -> Engine:
    """Like `asyncio.to_thread`, but the process does not wait for the thread: Ctrl-C ends it during a download."""
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[Engine] = loop.create_future()

    def settle(engine: Engine | None, error: Exception | None) -> None:
        if loaded.done():  # cancelled in the meantime
            return
        if error is not None:
            loaded.set_exception(error)
        elif engine is not None:
            loaded.set_result(engine)

    def run_load() -> None:
        engine, failure = None, None
        try:
            engine = load()
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nothing waits for the engine any more
            loop.call_soon_threadsafe(settle, engine, failure)

    threading.Thread(target=run_load, name="load-models", daemon=True).start()
    return await loaded
