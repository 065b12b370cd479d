"""Soak test (`python -m tests.charged_load`): is each key charged what its requests drew, those hung up on included?

Tiny models with a context of 8,192 tokens are served to two keys. Each has a mixed load, a third of which hangs up, and
one guided request of 4,000 tokens with `trace: true` at a time. The workers count the tokens that they draw. Exits with
1 if the charges differ from that by more than 2 %, or if the server's memory grows.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import psutil

from tests.replica import Replica, eventually, served, status_of
from tests.tiny import save_tiny

TOLERANCE = 0.02  # of the tokens that were drawn
GROWTH_MIB = 24  # of the server's memory from the middle of the load to its end
CLIENTS = 3  # of each key
CONTEXT = 8192
LONG = 4000
KEYS = ("alice", "bob")
# The parent, in which a worker is started by the second script instead of its module. It counts what it draws.
SERVER = """
import subprocess, sys
from w2s_core.pool import process
popen = subprocess.Popen
def counting(command, **options):
    return popen([*command[:3], "-c", sys.argv[-1], command[-1]], **options)
process.subprocess.Popen = counting
worker = sys.argv.pop()
sys.argv.append(worker)
from server.cli import main
main(sys.argv[1:-1])
"""
WORKER = """
import os, sys
from w2s_core.worker import main, step_outputs
draw, drawn = step_outputs.draw_tokens, 0
file = os.open(f"{os.environ['COUNTS']}/{os.getpid()}", os.O_RDWR | os.O_CREAT)
def counting(logits, draws):
    global drawn
    drawn += len(draws)
    os.pwrite(file, f"{drawn:20}".encode(), 0)
    return draw(logits, draws)
step_outputs.draw_tokens = counting
main.main(int(sys.argv[1]))
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """Tokens by who counted them, requests by how they ended, and the server's memory in MiB over the load."""

    drawn: int
    charged: int
    requests: dict[str, int]
    truncated_traces: int
    memory: list[float]

    @property
    def faults(self) -> list[str]:
        middle, end = self.memory[len(self.memory) // 2], max(self.memory[-3:])
        wrong = (
            [] if abs(self.charged - self.drawn) <= TOLERANCE * self.drawn else ["the charges are not what was drawn"]
        )
        return wrong + ([f"the memory grows: {middle} → {end} MiB"] if end - middle > GROWTH_MIB else [])


@contextmanager
def tiny_server(folder: Path) -> Iterator[Replica]:
    models = {
        name: str(save_tiny(folder / name, seed=seed, pairs=name != "large", context_length=CONTEXT))
        for seed, name in enumerate(("large", "tuned", "untuned"))
    }
    config = {
        "large_models": {"large": {"model": models["large"]}},
        "pairs": {"pair": {"tuned": models["tuned"], "untuned": models["untuned"], "prompt_template": ""}},
        "served_models": {
            "plain": {"large": "large"},
            "guided": {"large": "large", "guidance": {"method": "cbs", "pairs": {"pair": 1.0}}},
        },
        "workers": {"devices": ["cpu"], "threads": 1, "dtype": "float32", "kv_cache_gb": 0.05},
        "server": {
            "request_timeout_s": 3600,
            "api_keys": {key: {"key": key, "tokens_per_minute": 10**9} for key in KEYS},
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "counts").mkdir()
    options = ["--config", str(folder / "config.json"), "--port", "0", "--log-format", "json"]
    command = [sys.executable, "-c", SERVER, "serve", *options, WORKER]
    with served(command, {"COUNTS": str(folder / "counts"), "OMP_NUM_THREADS": "1"}, 300) as running:
        yield running


class Load:
    """Clients of one key. Every third request of the short ones is hung up on at any moment."""

    def __init__(self, url: str, key: str) -> None:
        self.endings: Counter[str] = Counter()
        self._http = httpx.AsyncClient(base_url=url, timeout=None, headers={"Authorization": f"Bearer {key}"})
        self._chance = random.Random(key)

    async def short(self, until: asyncio.Event) -> None:
        while not until.is_set():
            await self._one()

    async def long(self, until: asyncio.Event) -> None:
        body = {
            "model": "guided",
            "prompt": "Once",
            "max_tokens": LONG,
            "ignore_eos": True,
            "guidance": {"trace": True},
        }
        while not until.is_set():
            asking, over = asyncio.ensure_future(self._http.post("/v1/completions", json=body)), until.wait()
            await asyncio.wait({asking, stopping := asyncio.ensure_future(over)}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if asking.cancel():
                await asyncio.wait({asking})
                self.endings["hung up"] += 1
            else:
                self.endings[f"long {asking.result().status_code}"] += 1
                self.endings["truncated"] += asking.result().json()["guidance"].get("tree_truncated", False)

    async def aclose(self) -> None:
        await self._http.aclose()

    def _body(self) -> dict[str, Any]:
        chance = self._chance
        body: dict[str, Any] = {
            "model": chance.choice(["plain", "plain", "guided"]),
            "prompt": "".join(chance.choices("abcd xyz", k=chance.randrange(1, 60))),
            "max_tokens": chance.randrange(20, 300),
            "ignore_eos": True,
            "n": chance.choice([1, 1, 3]),
            "stop": chance.choice([None, "qq"]),
        }
        best = {"method": "best_of_n", "successors": 16, "pairs": {"pair": 1.0}}
        return body | ({"guidance": best, "model": "guided"} if chance.random() < 0.25 else {})

    async def _one(self) -> None:
        body, stream = self._body(), self._chance.random() < 0.5
        asking = asyncio.ensure_future(self._stream(body) if stream else self._whole(body))
        patience = self._chance.random() * 3 if self._chance.random() < 1 / 3 else None
        await asyncio.wait({asking}, timeout=patience)
        if asking.cancel():
            await asyncio.wait({asking})
            self.endings["hung up"] += 1
        else:
            self.endings[f"short {asking.result()}"] += 1

    async def _whole(self, body: dict[str, Any]) -> int:
        return (await self._http.post("/v1/completions", json=body)).status_code

    async def _stream(self, body: dict[str, Any]) -> int:
        async with self._http.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
            async for _ in response.aiter_lines():
                pass
        return response.status_code


async def run(seconds: float) -> Figures:
    with tempfile.TemporaryDirectory() as folder, tiny_server(Path(folder)) as server:
        loads, until = [Load(server.url, key) for key in KEYS], asyncio.Event()
        clients = [load.short(until) for load in loads for _ in range(CLIENTS)] + [load.long(until) for load in loads]
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client)
            memory = await _sampled_memory(server, seconds)
            until.set()
        await asyncio.to_thread(eventually, lambda: _is_idle(server.url))
        endings = sum((load.endings for load in loads), Counter[str]())
        for load in loads:
            await load.aclose()
        drawn = sum(int(file.read_text()) for file in (Path(folder) / "counts").iterdir())
        return Figures(drawn, _charged(server), dict(endings), endings.pop("truncated", 0), memory)


async def _sampled_memory(server: Replica, seconds: float) -> list[float]:
    process, samples = psutil.Process(server.process.pid), list[float]()
    for _ in range(20):
        await asyncio.sleep(seconds / 20)
        samples.append(round(process.memory_info().rss / 2**20, 1))
    return samples


def _is_idle(url: str) -> bool:
    metrics = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {KEYS[0]}"}).text
    return status_of(f"{url}/ready") == 200 and "\nw2s_requests_running 0.0" in metrics


def _charged(server: Replica) -> int:
    """The sum of the request log's charges."""
    lines = [json.loads(line) for line in server.seen if line.startswith("{")]
    return sum(line.get("sampled_tokens", 0) for line in lines if line.get("api_key") in KEYS)


@click.command()
@click.option("--seconds", default=600.0, show_default=True, help="Seconds of load.")
def main(seconds: float) -> None:
    """Load a server of its own and compare what its keys are charged with what its workers drew."""
    figures = asyncio.run(run(seconds))
    click.echo(json.dumps(asdict(figures)))
    click.echo(f"charged / drawn: {figures.charged / figures.drawn:.4f}")
    for fault in figures.faults:
        click.echo(fault, err=True)
    sys.exit(bool(figures.faults))


if __name__ == "__main__":
    main()
