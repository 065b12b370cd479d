"""The engine's life under the server: loading in the background, serving, stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from w2s_core.errors import ShuttingDownError, UnavailableError
from w2s_core.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from w2s_core.engine.engine import Engine

_LOADING_RETRY_S = 5


class EngineHost:
    """Holds the engine while it serves; only `_serve` sets it.

    `load` blocks (it fetches models), so it runs in a thread. `on_ready` and `on_failure` are called once, on the loop.
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
        self._engine: Engine | None = None
        self._failed = False
        self._nothing = Metrics()  # what is counted while there is no engine
        self._draining = False

    @property
    def draining(self) -> bool:
        """Whether the server is about to leave."""
        return self._draining

    def drain(self) -> None:
        """Refuses what comes and what waits from now on; what runs goes on."""
        self._draining = True
        if self._engine is not None:
            self._engine.drain()

    @property
    def ready(self) -> bool:
        """Whether a request would be served now."""
        return not self._draining and self._engine is not None and self._engine.ready

    @property
    def engine(self) -> Engine:
        """Raises UnavailableError while there is none, or none for newcomers."""
        if self._draining:
            raise ShuttingDownError
        if self._failed:
            raise UnavailableError("The models could not be loaded.", _LOADING_RETRY_S)
        if self._engine is None:
            raise UnavailableError("The models are still loading. Please try again shortly.", _LOADING_RETRY_S)
        return self._engine

    @property
    def loaded(self) -> Engine | None:
        """The engine, where there is one, even for nobody new."""
        return self._engine

    @property
    def metrics(self) -> Metrics:
        """The engine's; there are some while it loads, too."""
        return self._nothing if self._engine is None else self._engine.metrics

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Starts loading; at the end stops the engine, loaded or not."""
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
    """Like `asyncio.to_thread`, but the process need not wait for the thread: Ctrl-C during a download ends it."""
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[Engine] = loop.create_future()

    def settle(engine: Engine | None, error: Exception | None) -> None:
        if loaded.done():  # cancelled meanwhile
            return
        if error is not None:
            loaded.set_exception(error)
        elif engine is not None:
            loaded.set_result(engine)

    def work() -> None:
        engine, failure = None, None
        try:
            engine = load()
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, engine, failure)

    threading.Thread(target=work, name="load-models", daemon=True).start()
    return await loaded
