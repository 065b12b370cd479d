"""Capability probe: asks a provider at start what it can do, and again in the background while it is down."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from w2s_core.errors import ConfigurationError, RequestError, UnavailableError, UpstreamError, UpstreamRefusedError
from w2s_core.remote.provider import Provider

PROBE_TEXT = "The quick brown fox"  # a prompt to try a provider's completions with
_log = logging.getLogger(__name__)
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 30.0
_RETRY_AFTER_S = 5

T = TypeVar("T")


class CapabilityProbe(Generic[T]):
    """Starts and stops a provider, and holds the capabilities of type T that `probe` finds.

    `probe` raises ConfigurationError where the configuration does not fit the provider, and what `Provider.post`
    raises. A provider that is down does not keep the server from starting: it is probed again, with back-off, and until
    then `capabilities` raises.
    """

    def __init__(
        self,
        provider: Provider,
        probe: Callable[[], Awaitable[T]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._provider = provider
        self._probe = probe
        self._sleep = sleep
        self._capabilities: T | None = None
        self._reason = "has not been probed yet"
        self._retrying: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether the capabilities are known and the circuit breakers let calls through."""
        return self._capabilities is not None and self._provider.available

    @property
    def capabilities(self) -> T:
        """What the provider can do. Raises UnavailableError while that is not known."""
        if self._capabilities is None:
            raise UnavailableError(f"The provider of `{self._provider.name}` {self._reason}.", _RETRY_AFTER_S)
        return self._capabilities

    async def start(self) -> None:
        """Starts the provider and probes it once. Raises ConfigurationError."""
        await self._provider.start()
        try:
            await self._probe_once()
        except BaseException:
            await self.stop()
            raise
        if self._capabilities is None:
            self._retrying = asyncio.create_task(self._retry_until_probed())

    async def stop(self) -> None:
        """Stops probing and stops the provider."""
        if self._retrying is not None:
            self._retrying.cancel()
            await asyncio.gather(self._retrying, return_exceptions=True)
        await self._provider.stop()

    async def _probe_once(self) -> None:
        """Raises ConfigurationError. After any other answer the provider is probed again."""
        try:
            self._capabilities = await self._probe()
        except (UpstreamError, UnavailableError, RequestError) as error:
            self._reason = "has not been reached yet"
            _log.warning("%s is not served yet: %s", self._provider.name, error)
        except ConfigurationError:
            self._reason = "does not match the configuration"
            raise
        except Exception as error:
            self._reason = "has given an answer that cannot be used"
            # The error's own text is left out: it may quote the answer, and that our key.
            origin = "".join(traceback.format_tb(error.__traceback__))
            _log.error("%s is not served yet: %s in its probe\n%s", self._provider.name, type(error).__name__, origin)
        else:
            _log.info("provider of %s: %s", self._provider.name, self._capabilities)

    async def _retry_until_probed(self) -> None:
        delay = _FIRST_RETRY_S
        while self._capabilities is None:
            await self._sleep(delay)
            delay = min(2 * delay, _LAST_RETRY_S)
            try:
                await self._probe_once()
            except ConfigurationError as error:  # the server runs already and goes on serving its other models
                _log.error("%s is not served yet: %s", self._provider.name, error)


async def listed_context_length(provider: Provider, path: str = "/models") -> int | None:
    """Reads `max_model_len` from the provider's list of models at `path`, as vLLM, SGLang and this server list it.

    A LoRA adapter has its base model's (`parent`). Returns None where there is no such list or entry; raises what
    `Provider.get` raises.
    """
    try:
        answer = await provider.get(path)
    except UpstreamRefusedError:
        return None
    models = answer.get("data")
    listed = [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []
    model = _find(listed, provider.config.model)
    parent = _find(listed, model.get("parent"))
    for candidate in (model, parent):
        length = candidate.get("max_model_len")
        if isinstance(length, int) and not isinstance(length, bool) and length > 0:
            return length
    return None


def _find(models: Sequence[dict[str, Any]], name: object) -> dict[str, Any]:
    """The last model of this name, or an empty entry; ids may be of any type."""
    named = [model for model in models if isinstance(name, str) and model.get("id") == name]
    return named[-1] if named else {}
