"""A streaming client of the completion API that records when each text arrived."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from w2s_core.types import Tokens

_DATA, _DONE = "data: ", "[DONE]"


@dataclass(frozen=True, slots=True)
class Stream:
    """One streamed answer. `arrivals`: seconds from the request to each text; `seconds`: to the end."""

    tokens: int
    seconds: float
    arrivals: Sequence[float]
    ended: int = 0

    @property
    def gaps(self) -> list[float]:
        """Seconds between consecutive texts."""
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


def body(model: str, prompt: Tokens, tokens: int, seed: int, **fields: Any) -> dict[str, Any]:
    """The body of a streamed completion request with usage."""
    options = {"include_usage": True}
    base = {"model": model, "prompt": list(prompt), "max_tokens": tokens, "seed": seed}
    return base | {"stream": True, "stream_options": options} | fields


async def stream(client: httpx.AsyncClient, request: Mapping[str, Any]) -> Stream:
    """Streams one completion. Raises httpx.HTTPStatusError, and RuntimeError for an error event in the stream."""
    start = time.perf_counter()
    arrivals: list[float] = []
    tokens = ended = 0
    async with client.stream("POST", "/v1/completions", json=request) as response:
        if response.is_error:
            await response.aread()
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith(_DATA) or line == _DATA + _DONE:
                continue
            chunk = json.loads(line.removeprefix(_DATA))
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            if any(choice["text"] for choice in chunk["choices"]):
                arrivals.append(time.perf_counter() - start)
            ended += sum(choice["finish_reason"] == "stop" for choice in chunk["choices"])
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    return Stream(tokens, time.perf_counter() - start, arrivals, ended)


async def streams(url: str, requests: Sequence[Mapping[str, Any]], timeout_s: float) -> list[Stream]:
    """Streams all requests concurrently, each on a connection of its own."""
    limits = httpx.Limits(max_connections=len(requests))
    async with asyncio.timeout(timeout_s), httpx.AsyncClient(base_url=url, timeout=timeout_s, limits=limits) as client:
        return list(await asyncio.gather(*(stream(client, request) for request in requests)))
