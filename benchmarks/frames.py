"""How smoothly the playground draws a growing tree (`make frames`): 60 rounds of 64 candidates, in headless Chromium.

A fake API streams the rounds, so that nothing but the browser is measured. A frame's time is that between two
animation frames; long ones are also reported as the browser sees them, by its long-animation-frame entries.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import click
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from playwright.async_api import Page, async_playwright

from benchmarks.chromium import MISSING, find_chromium
from benchmarks.machine import machine
from server.access.policy import Policy
from server.playground.routes import mount_playground
from server.settings.config import ServerConfig

_WORDS = ("a", "film", "that", "is", "warm", "and", "funny", "with", "an", "actor", "who", "plays", "his", "life")
_WATCH = """
window.frames_ms = []; window.long_ms = [];
let last = null;
const tick = (now) => {
  if (last !== null) window.frames_ms.push(now - last);
  last = now;
  requestAnimationFrame(tick);
};
requestAnimationFrame(tick);
new PerformanceObserver((list) => list.getEntries().forEach((entry) => window.long_ms.push(entry.duration)))
  .observe({ type: "long-animation-frame" });
"""
_GUIDANCE = {"method": "cbs", "pairs": {"positive": 1.0}, "beam_width": 8, "successors": 8, "chunk_length": 5}


@dataclass(frozen=True)
class Frames:
    """What a browser measured while it drew: times of frames in milliseconds, and the candidates that it drew."""

    candidates: int
    frames: int
    longest_ms: float
    p99_ms: float
    long_frames_ms: list[float]


def rounds(count: int, width: int, beam: int) -> list[dict[str, Any]]:
    """The chunks of a search of `count` rounds with `width` candidates each, of which `beam` are kept."""
    chance, parents, chunks = random.Random(0), list[int](), []
    for number in range(count):
        candidates = [_candidate(chance, i, parents, number, width) for i in range(width)]
        best = sorted(candidates, key=lambda candidate: -candidate["rank"])[:beam]
        for candidate in best:
            candidate["fate"] = "kept"
        parents = [candidate["id"] for candidate in best]
        cost = {"committed": 0, "sampled_tokens": 5 * width * (number + 1), "scored_tokens": 0, "seconds": 0.1}
        round_ = {"prompt": 0, "choices": [0], "chunk": number + 1, "candidates": candidates, **cost}
        chunks.append({"id": "x", "choices": [], "guidance": {"round": round_}})
    return chunks


def _candidate(chance: random.Random, number: int, parents: list[int], chunk: int, width: int) -> dict[str, Any]:
    words = [chance.choice(_WORDS) for _ in range(5)]
    score = chunk + chance.gauss(0, 1)
    return {
        **{"id": number, "parent": parents[number * len(parents) // width] if parents else None},
        **{"offset": 25 * chunk, "text": " ".join(words)[:24].ljust(25), "score": score, "rank": score},
        **{"scores": {"positive": score}, "finish_reason": None, "fate": "pruned"},
    }


def fake_api(chunks: list[dict[str, Any]], pause_s: float) -> FastAPI:
    """The playground over an API that answers every request with these chunks, one each `pause_s`."""
    app = FastAPI()
    app.state.policy = Policy(ServerConfig())
    mount_playground(app)

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        shared = {"default_sampling": {"temperature": 1.0}, "available_scorers": {"pairs": ["positive"]}}
        plain = {"id": "plain", "default_guidance": None, **shared}
        return JSONResponse({"data": [plain, {"id": "guided", "default_guidance": _GUIDANCE, **shared}]})

    @app.post("/v1/chat/completions")
    async def answer() -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            for chunk in chunks:
                yield f"data: {json.dumps(chunk)}\n\n"
                await asyncio.sleep(pause_s)
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


@asynccontextmanager
async def _serving(app: FastAPI) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        running = asyncio.create_task(server._serve([listening]))
        try:
            yield "http://{}:{}".format(*listening.getsockname())
        finally:
            server.should_exit = True
            await running


async def measure(count: int = 60, width: int = 64, pause_s: float = 0.05) -> Frames:
    """Has Chromium draw a search while it streams. Raises RuntimeError if Chromium is not installed."""
    chromium = find_chromium()
    if chromium is None:
        raise RuntimeError(MISSING)
    async with _serving(fake_api(rounds(count, width, 8), pause_s)) as url, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium)
        page = await browser.new_page(viewport={"width": 1360, "height": 1000})
        await page.goto(f"{url}/playground#max_tokens={5 * count}&a.model=plain")
        await page.wait_for_selector("#run:not([disabled])")
        await page.evaluate(_WATCH)
        await page.click("#run")
        await page.wait_for_selector("#run:not([hidden])", timeout=10 * 60_000)
        measured = await _measured(page)
        await browser.close()
        return measured


async def _measured(page: Page) -> Frames:
    frames: list[float] = sorted(await page.evaluate("window.frames_ms"))
    long: list[float] = await page.evaluate("window.long_ms")
    drawn = int(await page.get_attribute("#tree", "data-nodes") or 0)
    return Frames(drawn, len(frames), frames[-1], frames[int(len(frames) * 0.99)], sorted(long, reverse=True))


@click.command()
@click.option("--rounds", "count", default=60, show_default=True)
@click.option("--candidates", "width", default=64, show_default=True)
@click.option("--pause", "pause_s", default=0.05, show_default=True, help="Seconds between two rounds.")
def main(count: int, width: int, pause_s: float) -> None:
    """Measure the frames of a growing search tree in the browser."""
    result = asyncio.run(measure(count, width, pause_s))
    click.echo(json.dumps(machine()))
    click.echo(f"{result.candidates} candidates drawn in {result.frames} frames")
    click.echo(f"longest frame {result.longest_ms:.0f} ms, 99th percentile {result.p99_ms:.0f} ms")
    click.echo(f"long animation frames (over 50 ms): {[round(ms) for ms in result.long_frames_ms[:5]]}")


if __name__ == "__main__":
    main()
