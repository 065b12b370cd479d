"""Rolling restart under load: of two replicas behind nginx one is drained, the other killed, and both restarted.

`python -m tests.deploy.rolling` does it with the demo's models and prints the figures.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click
import httpx

from deploy.local import SERVE, find_nginx, nginx_command, render, upstream
from tests.replica import Replica, eventually, served, status_of
from tests.traffic import Ending, Sizes, Traffic

LOADING = 300.0  # seconds
KINDS = ("whole", "stream", "stream")
Start = Callable[[int], Iterator[Replica]]  # on a port; what `contextmanager` takes


@dataclass(frozen=True, slots=True)
class Figures:
    """Of all requests: `retried` were taken to the other replica; `cut` are streams that had begun on the killed one;
    `failed` is everything else that did not end as it should. `finished`: what the drained one still answered."""

    requests: int
    streams: int
    retried: int
    cut: int
    failed: Sequence[str]
    finished: int
    exit_code: int


class Fleet:
    """Two replicas on ports of their own behind nginx, which keeps a log."""

    def __init__(self, start: Start, nginx: str, folder: Path, ports: Sequence[int]) -> None:
        self.ports = ports
        self.url = f"http://127.0.0.1:{ports[2]}"
        self.log = folder / "requests.log"
        self._start = contextmanager(start)
        self._stack = ExitStack()
        self._nginx = (nginx, folder)
        self.replicas: list[Replica] = []

    def __enter__(self) -> Fleet:
        with ExitStack() as starting:
            self._stack = starting
            self._begin()
            self._stack = starting.pop_all()
        return self

    def _begin(self) -> None:
        self.replicas = [self._stack.enter_context(self._start(port)) for port in self.ports[:2]]
        nginx, folder = self._nginx
        lines = upstream([f"127.0.0.1:{port}" for port in self.ports[:2]])
        config = render(folder, urlsplit(self.url).netloc, lines)
        log = self._stack.enter_context(self.log.open("wb"))
        process = subprocess.Popen(nginx_command(nginx, folder, config), stdout=log)
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        eventually(lambda: _answers(f"{self.url}/ready"))

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def again(self, number: int) -> None:
        """Starts a replica where one has gone; returns when it is ready."""
        self.replicas[number] = self._stack.enter_context(self._start(self.ports[number]))

    def streaming(self, number: int) -> float:
        """Requests under way at a replica."""
        text = httpx.get(f"{self.replicas[number].url}/metrics", timeout=60).text
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("w2s_requests_running "))

    def asked(self) -> dict[str, list[str]]:
        """By request id, the replicas that nginx asked, in turn. Only after the end."""
        entries = [json.loads(line) for line in self.log.read_text().splitlines()]
        return {entry["request_id"]: entry["replicas"].split(", ") for entry in entries}


async def roll(fleet: Fleet, plain: str, guided: str, *, clients: int, sizes: Sizes, steady: int) -> Figures:
    """`steady` requests end between one event and the next."""
    async with Traffic(fleet.url, KINDS, plain, guided, clients, sizes=sizes) as traffic:
        await traffic.more(steady)
        await asyncio.to_thread(eventually, lambda: fleet.streaming(0) >= 2, LOADING)
        drained = fleet.replicas[0]
        drained.send(signal.SIGTERM)
        exit_code = await asyncio.to_thread(drained.process.wait, LOADING)
        await traffic.more(steady)
        await asyncio.to_thread(fleet.again, 0)
        await traffic.more(steady)
        await asyncio.to_thread(eventually, lambda: fleet.streaming(1) >= 2, LOADING)
        fleet.replicas[1].process.kill()
        killed_after = len(traffic.endings)
        await asyncio.to_thread(fleet.replicas[1].process.wait, LOADING)
        await traffic.more(steady)
        await asyncio.to_thread(fleet.again, 1)
        await traffic.more(steady)
    return figures(fleet, traffic.endings, killed_after, exit_code)


def figures(fleet: Fleet, endings: Sequence[Ending], killed_after: int, exit_code: int) -> Figures:
    asked = fleet.asked()
    first, second = (f"127.0.0.1:{port}" for port in fleet.ports[:2])
    cut, failed = 0, []
    for number, ending in enumerate(endings):
        tried = asked.get(ending.request_id, [])
        if ending.whole:
            continue
        if number >= killed_after and ending.kind == "stream" and ending.began and tried[-1] == second:
            cut += 1
        else:
            failed.append(f"{ending.kind} by {tried}, begun: {ending.began}: {ending.status} {ending.detail}")
    return Figures(
        requests=len(endings),
        streams=sum(ending.kind == "stream" for ending in endings),
        retried=sum(len(asked.get(ending.request_id, [])) > 1 for ending in endings),
        cut=cut,
        failed=failed,
        finished=sum(asked.get(ending.request_id, [])[-1:] == [first] for ending in endings[:killed_after]),
        exit_code=exit_code,
    )


def _answers(url: str) -> bool:
    try:
        return status_of(url) == 200
    except httpx.TransportError:
        return False


def real_replica(variables: Mapping[str, str]) -> Start:
    """`w2s serve`, as anybody runs it."""

    def start(port: int) -> Iterator[Replica]:
        command = [sys.executable, "-c", SERVE, "serve", "--port", str(port), "--log-level", "error"]
        with served(command, {"W2S_WORKERS__THREADS": "1"} | variables, LOADING) as running:
            yield running

    return start


@click.command()
@click.option("--clients", default=8, show_default=True)
@click.option("--steady", default=30, show_default=True, help="Requests between one event and the next.")
def main(clients: int, steady: int) -> None:
    """Drain one replica of the demo, kill the other, start both again, all under load."""
    nginx = find_nginx()
    if nginx is None:
        raise click.ClickException("nginx is not installed; on Debian: apt-get install nginx-light")
    from tests.deploy.conftest import free_port

    with tempfile.TemporaryDirectory() as folder:
        ports = [free_port() for _ in range(3)]
        with Fleet(real_replica({"W2S_WORKERS__DTYPE": "float32"}), nginx, Path(folder), ports) as fleet:
            sizes = Sizes(least=4, most=24)
            names = ("smollm2", "smollm2-positive")
            found = asyncio.run(roll(fleet, *names, clients=clients, sizes=sizes, steady=steady))
    click.echo(json.dumps(asdict(found), indent=1))
    sys.exit(bool(found.failed or found.exit_code))


if __name__ == "__main__":
    main()
