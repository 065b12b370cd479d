"""Runs replicas of the server behind nginx on this machine (`make deploy-local`).

nginx listens on PORT and the replicas on the ports after it. SIGINT or SIGTERM shuts down the replicas gracefully, then
nginx.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from string import Template
from types import FrameType
from typing import NoReturn

import click

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "deploy" / "nginx.conf"
SERVE = "from server.cli import main; main()"
POLL_S = 0.2  # seconds between checks of the processes
STOP_TIMEOUT_S = 60  # seconds until a process that does not stop is killed; longer than drain_timeout_s


def find_nginx() -> str | None:
    """The path of nginx, also in /usr/sbin, which Debian puts on the PATH of root only."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def upstream(addresses: Sequence[str]) -> str:
    """The `server` lines of the upstream; deploy/nginx.conf explains them."""
    primary = [f"server {address} max_fails=1 fail_timeout=5s;" for address in addresses]
    backup = 2 * [f"server {address} max_fails=0 backup;" for address in addresses]
    return " ".join([*primary, *backup])


def render(run_dir: Path, listen: str, replicas: str, resolver: str = "") -> str:
    """deploy/nginx.conf with its W2S_ variables filled in. nginx's own variables stay, as in the nginx image."""
    values = {
        "W2S_LISTEN": listen,
        "W2S_REPLICAS": replicas,
        "W2S_RESOLVER": resolver,
        "W2S_RUN_DIR": str(run_dir),
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).safe_substitute(values)


def nginx_command(nginx: str, run_dir: Path, config: str) -> list[str]:
    """Writes `config` into `run_dir` and returns the command that runs nginx in the foreground with it."""
    path = run_dir / "nginx.conf"
    path.write_text(config, encoding="utf-8")
    # Started by root, nginx would run its workers as another user, who cannot enter `run_dir`.
    user = " user root;" if os.geteuid() == 0 else ""
    return [nginx, "-e", "stderr", "-p", str(run_dir), "-c", str(path), "-g", f"daemon off;{user}"]


def is_ready(port: int) -> bool:
    """Whether the replica at this port is ready to serve."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextmanager
def replicas(ports: Sequence[int], arguments: Sequence[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Starts one replica per port; leaving the context shuts them down gracefully."""
    threads = max(1, (os.cpu_count() or 1) // len(ports))  # together they use every core once
    env = {"W2S_WORKERS__THREADS": str(threads), **os.environ, "W2S_SERVER__HOST": "127.0.0.1"}
    started: list[subprocess.Popen[bytes]] = []
    try:
        for port in ports:
            command = [sys.executable, "-c", SERVE, "serve", "--port", str(port), *arguments]
            started.append(_start(command, env))
        yield started
    finally:
        stop(started, signal.SIGTERM)


def stop(processes: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    """Signals all processes, then waits for them. Kills those that do not stop in time."""
    for process in processes:
        process.send_signal(number)
    for process in processes:
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _start(command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # In its own session, so that Ctrl-C reaches only this process, which stops the others in order.
    return subprocess.Popen(command, cwd=ROOT, env=dict(env), start_new_session=True)


def watch(processes: Sequence[subprocess.Popen[bytes]], ports: Sequence[int] = ()) -> bool:
    """Waits until every port is ready, or forever without ports. Returns False if a process has ended by itself."""
    waiting = set(ports)
    while waiting or not ports:
        if any(process.poll() is not None for process in processes):
            return False
        waiting -= {port for port in waiting if is_ready(port)}
        time.sleep(POLL_S)
    return True


def _exit(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    signal.signal(number, signal.SIG_IGN)  # ignore further signals: the replicas have their own time limit
    sys.exit(0)


@click.command()
@click.option("--port", default=8000, help="Port of nginx; the replicas use the ports after it.")
@click.option("--replicas", "count", default=2, type=click.IntRange(1), help="Number of replicas.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    help="Configuration file, as for `w2s serve`.",
)
def main(port: int, count: int, config: str | None) -> None:
    """Run replicas behind nginx until SIGINT or SIGTERM."""
    nginx = find_nginx()
    if nginx is None:
        raise click.ClickException("nginx is not installed. On Debian: apt-get install nginx-light")
    ports = [port + 1 + i for i in range(count)]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)
    with tempfile.TemporaryDirectory(prefix="w2s-nginx-") as folder:
        run_dir = Path(folder)
        lines = upstream([f"127.0.0.1:{number}" for number in ports])
        command = nginx_command(nginx, run_dir, render(run_dir, f"127.0.0.1:{port}", lines))
        balancer: list[subprocess.Popen[bytes]] = []
        try:
            with replicas(ports, ["--config", config] if config else []) as running:
                if not watch(running, ports):
                    raise click.ClickException("a replica exited before it was ready; see its output above")
                balancer.append(_start(command, os.environ))
                click.echo(
                    f"\n{count} replicas behind http://127.0.0.1:{port}; Ctrl-C drains and stops them\n", err=True
                )
                watch([*running, *balancer])
                raise click.ClickException("a process exited by itself; the others have been stopped")
        finally:
            stop(balancer, signal.SIGQUIT)  # last, because it still passes on the replicas' last answers


if __name__ == "__main__":
    main()
