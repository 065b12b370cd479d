"""A fake provider as a process of its own, which can be killed: `python -m tests.remote.provider_process TOKENIZER`.

Below its URL stand three models, `/large`, `/tuned` and `/untuned`. `POST /hold` makes it hold the calls that continue
an answer of `large`, `GET /held` tells how many it has in its hands, `POST /release` lets them go.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any
from zlib import crc32

import uvicorn
from fastapi import FastAPI

from tests.remote.fake_provider import FakeProvider, words
from w2s_core.text.tokenizer import HFTokenizer

PROMPT_TOKENS = 8  # of every prompt that is put to `large`, so that what is longer continues an answer


class Gate:
    """Open, until somebody holds it."""

    def __init__(self) -> None:
        self.held = 0
        self._open = asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def __call__(self) -> None:
        self.held += 1
        await self._open.wait()
        self.held -= 1


LETTERS = {"large": "abcdé☃", "tuned": "cdab☃é", "untuned": "é☃abcd"}  # that each likes, by the part of its path


def application(tokenizer: HFTokenizer, letters: Mapping[str, str] = LETTERS, gated: str = "large") -> FastAPI:
    app, gate = FastAPI(), Gate()
    likes = partial(words, tokenizer, eos=0.0, turn=lambda context: crc32(repr(context).encode()))
    models = {name: FakeProvider(tokenizer, likes(tuple(order))) for name, order in letters.items()}

    @app.get("/{model}/models")
    async def listed(model: str) -> dict[str, Any]:
        return await models[model].get("/models")

    @app.post("/{model}/completions")
    async def completions(model: str, body: dict[str, Any]) -> dict[str, Any]:
        if model == gated and len(body["prompt"]) > PROMPT_TOKENS:
            await gate()
        return await models[model].post("/completions", body)

    @app.post("/hold")
    async def hold() -> None:
        gate.hold()

    @app.post("/release")
    async def release() -> None:
        gate.release()

    @app.get("/held")
    async def held() -> int:
        return gate.held

    return app


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(
            uvicorn.Config(application(HFTokenizer(sys.argv[1])), log_level="error", lifespan="off")
        )
        print(f"Ready at http://127.0.0.1:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
        server.run([listening])


if __name__ == "__main__":
    main()
