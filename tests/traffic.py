"""Load generator: concurrent clients of every kind, each of which records how its requests ended."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

PATIENCE = 120.0  # seconds for one request on a busy machine; a longer one is stuck
REFUSED_S = 0.5  # seconds that a refused client waits before its next request
GONE = "the client disconnected"
_PATHS = {"prompt": "/v1/completions", "messages": "/v1/chat/completions"}
_WORDS = ("the film", "was long", "and slow", "but", "its actors", "were good", "so we stayed", "to the end")
# Path, body (None: malformed), status.
BAD: Sequence[tuple[str, Any, int]] = (
    ("/v1/completions", None, 400),
    ("/v1/completions", {"model": "nobody", "prompt": "x"}, 404),
    ("/v1/completions", {"prompt": "x", "temperature": 99}, 400),
    ("/v1/completions", {"prompt": "x", "max_tokens": -1}, 400),
    ("/v1/completions", {"prompt": "x", "guidnace": {}}, 400),
    ("/v1/completions", {"prompt": "x", "guidance": {"beam_width": 0}}, 400),
    ("/v1/completions", {"prompt": "word " * 50_000}, 400),
    ("/v1/chat/completions", {"messages": []}, 400),
    ("/v1/chat/completions", {"messages": [{"role": "nobody", "content": "x"}]}, 400),
    ("/v1/elsewhere", {}, 404),
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How one request ended, after `seconds`.

    `began`: the response's headers arrived. `whole`: it ended as expected. `detail` says what was wrong, or GONE.
    """

    kind: str
    request_id: str
    began: bool
    whole: bool
    status: int | None
    seconds: float
    detail: str = ""


@dataclass(slots=True)
class _Progress:
    began: bool = False
    status: int | None = None
    whole: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The range of tokens per answer, and whether EOS may end it earlier."""

    least: int = 5
    most: int = 40
    ends: bool = True


@dataclass
class Traffic:
    """Load generator: `async with` runs `clients` that send requests of random `kinds`, one after another each.

    Leaving the context waits for the running requests to finish.
    """

    url: str
    kinds: Sequence[str]
    plain: str
    guided: str
    clients: int = 8
    seed: int = 0
    sizes: Sizes = field(default_factory=Sizes)
    endings: list[Ending] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._stopping = asyncio.Event()
        self._ended = asyncio.Condition()
        self._http = httpx.AsyncClient(
            base_url=self.url, timeout=PATIENCE, limits=httpx.Limits(max_connections=2 * self.clients)
        )
        self._tasks = [asyncio.create_task(self._client(i)) for i in range(self.clients)]
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        if error is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.wait(self._tasks)
        await self._http.aclose()
        for task in self._tasks:
            if not task.cancelled():
                task.result()

    async def more(self, count: int) -> None:
        """Waits until `count` more requests have ended."""
        target = len(self.endings) + count
        async with asyncio.timeout(count * PATIENCE), self._ended:
            await self._ended.wait_for(lambda: len(self.endings) >= target)

    def count(self, true: Callable[[Ending], object] = lambda _: True) -> Counter[str]:
        """The number of endings by kind."""
        return Counter(ending.kind for ending in self.endings if true(ending))

    async def _client(self, number: int) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        senders: Mapping[str, Callable[..., Awaitable[None]]] = {
            "whole": self._whole,
            "stream": self._stream,
            "cancel": self._cancel,
            "slow reader": self._slow_reader,
            "slow sender": self._slow_sender,
            "bad": self._bad,
        }
        turn = 0
        while not self._stopping.is_set():
            kind, turn = rng.choice(self.kinds), turn + 1
            request_id, progress, start = f"{self.seed}-{number}-{turn}", _Progress(), time.perf_counter()
            try:
                async with asyncio.timeout(PATIENCE):
                    await senders[kind](rng, request_id, progress)
            except (httpx.HTTPError, TimeoutError, OSError, ValueError) as error:
                progress.detail = f"{type(error).__name__}: {error}"
            seconds = time.perf_counter() - start
            ending = Ending(kind, request_id, progress.began, progress.whole, progress.status, seconds, progress.detail)
            async with self._ended:
                self.endings.append(ending)
                self._ended.notify_all()
            if progress.status in (429, 503):
                await asyncio.sleep(REFUSED_S)

    def _body(self, rng: random.Random, **fields: Any) -> dict[str, Any]:
        text = " ".join(rng.choices(_WORDS, k=rng.randrange(1, 40)))
        tokens = rng.randrange(self.sizes.least, self.sizes.most + 1)
        body = {
            "model": rng.choice([self.plain, self.guided]),
            "max_tokens": tokens,
            "seed": rng.randrange(1000),
            "temperature": rng.choice([0.7, 1.0]),
            "top_p": rng.choice([0.9, 1.0]),
        }
        body |= {} if self.sizes.ends else {"ignore_eos": True}
        prompt = {"prompt": text} if rng.random() < 0.5 else {"messages": [{"role": "user", "content": text}]}
        return body | prompt | fields

    async def _whole(self, rng: random.Random, request_id: str, progress: _Progress) -> None:
        body = self._body(rng)
        path = _PATHS["prompt" if "prompt" in body else "messages"]
        async with self._http.stream("POST", path, json=body, headers={"x-request-id": request_id}) as response:
            progress.began, progress.status = True, response.status_code
            await response.aread()
        if response.is_success:
            progress.whole = bool(response.json()["choices"])
        else:
            progress.detail = response.text

    async def _stream(
        self, rng: random.Random, request_id: str, progress: _Progress, pause_s: float = 0.0, disconnect_after: int = -1
    ) -> None:
        """Streams an answer, and disconnects after `disconnect_after` events unless that is negative."""
        body = self._body(rng, stream=True)
        path = _PATHS["prompt" if "prompt" in body else "messages"]
        async with self._http.stream("POST", path, json=body, headers={"x-request-id": request_id}) as response:
            progress.status = response.status_code
            progress.began = True
            if not response.is_success:
                progress.detail = (await response.aread()).decode()
                return
            async for event in _events(response):
                if disconnect_after == 0:
                    progress.whole, progress.detail = True, GONE
                    return
                disconnect_after -= 1
                if event != "[DONE]" and "error" in (data := json.loads(event)):
                    progress.detail = data["error"]["message"]
                progress.whole = event == "[DONE]" and not progress.detail
                await asyncio.sleep(pause_s)

    async def _cancel(self, rng: random.Random, request_id: str, progress: _Progress) -> None:
        if rng.random() < 0.5:
            await self._stream(rng, request_id, progress, disconnect_after=rng.randrange(4))
            return
        task = asyncio.ensure_future(self._whole(rng, request_id, progress))
        await asyncio.wait({task}, timeout=rng.random())
        task.cancel()
        await asyncio.wait({task})
        if task.cancelled():
            progress.whole, progress.detail = True, GONE
        else:
            task.result()

    async def _slow_reader(self, rng: random.Random, request_id: str, progress: _Progress) -> None:
        await self._stream(rng, request_id, progress, pause_s=0.3)

    async def _slow_sender(self, rng: random.Random, request_id: str, progress: _Progress) -> None:
        """Sends the request in small parts, on a connection of its own."""
        where = urlsplit(self.url)
        body = self._body(rng, model=self.plain)
        path = _PATHS["prompt" if "prompt" in body else "messages"]
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-request-id: {request_id}\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        data = head.encode() + content
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        try:
            size = len(data) // 20 + 1
            for start in range(0, len(data), size):
                writer.write(data[start : start + size])
                await writer.drain()
                await asyncio.sleep(0.1)
            answer = await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()
        progress.began = bool(answer)
        progress.status = int(answer.split()[1]) if answer else None
        progress.whole = progress.status == 200 and b'"choices"' in answer
        progress.detail = "" if progress.whole else answer.decode(errors="replace")[-500:]

    async def _bad(self, rng: random.Random, request_id: str, progress: _Progress) -> None:
        path, body, status = rng.choice(BAD)
        content = b'{"model": ' if body is None else json.dumps({"model": self.plain} | body).encode()
        headers = {"content-type": "application/json", "x-request-id": request_id}
        response = await self._http.post(path, content=content, headers=headers)
        progress.began, progress.status = True, response.status_code
        progress.whole = response.status_code == status and set(response.json()) == {"error"}
        progress.detail = "" if progress.whole else f"{path} {str(body)[:80]}: {response.text}"


async def _events(response: httpx.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")
