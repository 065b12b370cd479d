"""Fixtures: nginx with the shipped configuration, in front of the servers that a test chooses."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from deploy.local import find_nginx, nginx_command, render, upstream
from tests.deploy.stub import Stub, stub
from tests.replica import SOON, Replica, eventually, replica

Balance = Callable[..., str]


@pytest.fixture
def nginx() -> str:
    found = find_nginx()
    if found is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def running_nginx(nginx: str, folder: Path, *urls: str) -> Iterator[str]:
    """The address of nginx in front of `urls`."""
    listen = f"127.0.0.1:{free_port()}"
    config = render(folder, listen, upstream([urlsplit(url).netloc for url in urls]))
    with (
        (folder / "requests.log").open("wb") as log,
        subprocess.Popen(nginx_command(nginx, folder, config), stdout=log) as process,
    ):
        try:
            eventually(lambda: answers(f"http://{listen}/metrics"))
            yield f"http://{listen}"
        finally:
            process.terminate()
            process.wait(SOON)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=SOON).status_code > 0
    except httpx.TransportError:
        return False


@pytest.fixture
def balance(nginx: str, tmp_path: Path) -> Iterator[Balance]:
    """`balance(url, …)`: the address of nginx in front of them."""
    with ExitStack() as stack:
        yield lambda *urls: stack.enter_context(running_nginx(nginx, tmp_path, *urls))


@pytest.fixture
def stubs() -> Iterator[tuple[Stub, Stub]]:
    with stub() as one, stub() as other:
        yield one, other


@pytest.fixture
def pair_of_replicas(nginx: str) -> Iterator[tuple[Replica, Replica]]:
    """Two real servers, each with room for one running answer."""
    with replica(WORKERS__MAX_ROWS="1") as one, replica(WORKERS__MAX_ROWS="1") as other:
        yield one, other
