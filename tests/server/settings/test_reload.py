"""Reload on SIGHUP: keys, limits and served models change under running streams; an invalid configuration changes
nothing."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from server.settings.config import ServerConfig, Settings
from server.settings.reload import _RELOADABLE, changed_keys, keys_needing_restart
from tests.replica import REPLICA, ROOT, SOON, Replica, replica
from tests.server.http.test_limits import certified

PATH = "/v1/completions"
BODY = {"model": "plain", "prompt": "x", "max_tokens": 3, "seed": 0}
PAIR = {"tuned": "x", "untuned": "y"}
GUIDED = {"pairs": {"positive": 1.0}, "beam_width": 2, "successors": 2, "chunk_length": 3}
RELOADED, NOT_RELOADED = "is reloaded", "is not reloaded"


def settings(**server: Any) -> dict[str, Any]:
    """The settings of the replica's fake engine, as in a file."""
    return {
        "large_models": {"large": {"model": "x"}},
        "pairs": {"positive": PAIR, "polite": PAIR},
        "served_models": {"plain": {"large": "large"}, "guided": {"large": "large", "guidance": GUIDED}},
        "server": server,
    }


class Configured:
    """A replica with its configuration file and key file."""

    def __init__(self, running: Replica, folder: Path) -> None:
        self.running, self.folder = running, folder

    def reload(self, content: Any = None, keys: str | None = None, until: str = RELOADED) -> str:
        """Writes the files, sends SIGHUP, and returns the log line about it."""
        write(self.folder, content, keys)
        self.running.send(signal.SIGHUP)
        return self.running.until(until)

    def ask(self, key: str = "alices", **fields: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(self.running.url + PATH, json=BODY | fields, headers=headers, timeout=SOON)


def write(folder: Path, content: Any = None, keys: str | None = None) -> None:
    if content is not None:
        (folder / "w2s.yaml").write_text(content if isinstance(content, str) else json.dumps(content))
    if keys is not None:
        (folder / "keys.yaml").write_text(keys)


@contextmanager
def configured(folder: Path, content: Mapping[str, Any]) -> Iterator[Configured]:
    write(folder, content, "alice: alices\n")
    with replica(CONFIG=str(folder / "w2s.yaml")) as running:
        yield Configured(running, folder)


@pytest.fixture
def keys_file(tmp_path: Path) -> dict[str, str]:
    return {"api_keys_file": str(tmp_path / "keys.yaml")}


def test_a_key_is_revoked_under_its_running_stream(tmp_path: Path, keys_file: dict[str, str]) -> None:
    with configured(tmp_path, settings(**keys_file)) as server:
        running = server.running
        running.allow(1)
        headers = {"authorization": "Bearer alices"}
        with httpx.stream("POST", running.url + PATH, json=BODY | {"stream": True}, headers=headers) as response:
            events = (line.removeprefix("data: ") for line in response.iter_lines() if line)
            assert json.loads(next(events))["choices"][0]["text"]
            server.reload(keys="bob: bobs\n")
            assert server.ask("alices").status_code == 401
            running.run_free()
            rest = list(events)
        assert rest[-1] == "[DONE]"
        assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"
        assert server.ask("bobs").status_code == 200
        assert not [line for line in running.seen if "alices" in line or "bobs" in line]


def test_limits_and_served_models_change(tmp_path: Path, keys_file: dict[str, str]) -> None:
    with configured(tmp_path, settings(**keys_file)) as server:
        server.running.run_free()
        assert [server.ask(model=name).status_code for name in ("plain", "guided", "wide")] == [200, 200, 404]
        assert server.ask(n=5).status_code == 200
        fingerprint = server.ask().json()["system_fingerprint"]
        changed = settings(**keys_file, max_rows_per_request=4, max_body_bytes=200, log_level="debug")
        changed["served_models"]["wide"] = {"large": "large", "guidance": GUIDED | {"chunk_length": 1}}
        del changed["served_models"]["guided"]
        line = server.reload(changed)
        for key in ("max_rows_per_request", "max_body_bytes", "log_level"):
            assert f"server.{key}" in line
        assert "served_models.wide" in line
        assert "served_models.guided" in line
        assert server.ask().json()["system_fingerprint"] != fingerprint
        assert [server.ask(model=name).status_code for name in ("plain", "guided", "wide")] == [200, 404, 200]
        assert server.ask(n=5).json()["error"]["param"] == "n"
        assert server.ask(prompt="x" * 200).status_code == 413
        listed = httpx.get(f"{server.running.url}/v1/models", headers={"authorization": "Bearer alices"}).json()
        assert [model["id"] for model in listed["data"]] == ["plain", "wide"]
        assert [m["guidance"]["chunk_length"] for m in [server.ask(model="wide").json()]] == [1]
        httpx.get(f"{server.running.url}/health")
        server.running.until("GET /health")  # a line of level debug


BROKEN: list[tuple[Any, str | None, str]] = [
    ("server: [", None, "is not YAML"),
    (settings(prot=1), None, "server.prot: unknown key"),
    (settings(max_rows_per_request=0), None, "server.max_rows_per_request"),
    (settings(api_keys=[""]), None, "server.api_keys.key-1.key"),
    (settings() | {"served_models": {"plain": {"large": "nobody"}}}, None, "served_models.plain.large"),
    (settings() | {"large_models": {"large": {"model": "x"}, "more": {"model": "y"}}}, None, "large_models.more"),
    (settings() | {"large_models": {"large": {"model": "y"}}}, None, "large_models.large"),
    (settings() | {"pairs": {"positive": PAIR, "polite": PAIR, "more": PAIR}}, None, "pairs.more"),
    (settings() | {"workers": {"max_rows": 3}}, None, "workers"),
    (settings(port=1), None, "server.port"),
    (settings(cors_origins=["*"]), None, "server.cors_origins"),
    (settings(tls_certificate="nowhere.pem"), None, "server.tls_certificate"),
    (None, "", "holds no key"),
    (None, "alice: {kee: sesame}", "alice.kee: unknown key"),
]


def test_what_cannot_be_followed_changes_nothing(tmp_path: Path, keys_file: dict[str, str]) -> None:
    original = settings(**keys_file)
    # The port is a flag here, and a flag wins over the file: a change of the file's changes nothing.
    broken = [case for case in BROKEN if case[2] != "server.port"]
    with configured(tmp_path, original) as server:
        server.running.run_free()
        for content, keys, reason in broken:
            if isinstance(content, dict):
                content["server"] = keys_file | content["server"]
            before = len(server.running.seen)
            line = server.reload(content, keys, until=NOT_RELOADED)
            assert reason in line
            assert "sesame" not in line
            assert server.ask().status_code == 200
            about_it = [
                seen for seen in server.running.seen[before:] if "POST /" not in seen and "rows waiting" not in seen
            ]
            assert about_it == [line], "one line"
            write(tmp_path, original, "alice: alices\n")
        assert "no key changed" in server.reload()


def test_the_certificate_changes_for_new_connections(tmp_path: Path) -> None:
    first, second = trustme.CA(), trustme.CA()
    with configured(tmp_path, settings(**certified(first, tmp_path))) as server:
        assert connects(server.running.url, first)
        assert not connects(server.running.url, second)
        certified(second, tmp_path)
        server.reload()
        assert connects(server.running.url, second)
        assert not connects(server.running.url, first)
        (tmp_path / "key.pem").write_text("nonsense")
        assert "server.tls_key" in server.reload(until=NOT_RELOADED)
        assert connects(server.running.url, second)


def connects(url: str, authority: trustme.CA) -> bool:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    try:
        return httpx.get(f"{url}/health", verify=trusting, timeout=SOON).status_code == 200
    except httpx.ConnectError:
        return False


LOADS_WHEN_TOLD = """
import sys, types
from tests.fakes import fake_engine
def build(config):
    sys.stdin.readline()
    return fake_engine(limits=config.limits)
sys.modules["w2s_core.build.engine"] = types.SimpleNamespace(build_engine=build)
from server.cli import main
main()
"""


def test_a_change_while_models_load_holds_once_they_are_there(tmp_path: Path) -> None:
    write(tmp_path, settings())
    command = [sys.executable, "-c", LOADS_WHEN_TOLD, "serve", "--port", "0", "--config", str(tmp_path / "w2s.yaml")]
    with subprocess.Popen(command, cwd=ROOT, stdin=-1, stderr=-1, text=True) as process:
        try:
            running = Replica(process)
            assert process.stderr is not None
            assert process.stdin is not None
            next(line for line in process.stderr if "startup complete" in line)
            changed = settings()
            changed["served_models"]["new"] = {"large": "large"}
            write(tmp_path, changed)
            running.send(signal.SIGHUP)
            next(line for line in process.stderr if RELOADED in line)
            process.stdin.write("\n")
            process.stdin.flush()
            url = next(line for line in process.stderr if "Ready at" in line).split()[2]
            listed = httpx.get(f"{url}/v1/models", timeout=SOON).json()["data"]
            assert [model["id"] for model in listed] == ["plain", "guided", "new"]
        finally:
            process.kill()


def test_it_leaves_with_its_terminal() -> None:
    """A terminal that is closed sends SIGHUP, too."""
    terminal, theirs = os.openpty()
    command = [sys.executable, "-c", REPLICA, "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs) as process:
        try:
            os.close(theirs)
            said = b""
            while b"Ready at" not in said:
                said += os.read(terminal, 4096)
            os.close(terminal)
            process.send_signal(signal.SIGHUP)
            assert process.wait(timeout=SOON) == 0
        finally:
            process.kill()


# What can be followed


def test_what_is_live_is_a_key() -> None:
    assert set(ServerConfig.model_fields) > _RELOADABLE


@pytest.mark.parametrize("name", sorted(set(ServerConfig.model_fields) - _RELOADABLE))
def test_a_key_that_is_not_live_needs_a_restart(name: str) -> None:
    other = {"host": "h", "port": 9, "admin_port": 9, "cors_origins": ("*",), "log_format": "json", "traces": True}
    old, new = (Settings(**settings(**server)) for server in ({}, {name: other[name]}))
    changed = changed_keys(old, new)
    assert changed == [f"server.{name}"]
    assert keys_needing_restart(changed, old.server, new.server) == changed


def test_tls_cannot_begin_or_end() -> None:
    old, new = (Settings(**settings(**server)) for server in ({}, {"tls_certificate": "x"}))
    assert keys_needing_restart(changed_keys(old, new), old.server, new.server) == ["server.tls_certificate"]
    later = Settings(**settings(tls_certificate="y"))
    assert keys_needing_restart(changed_keys(new, later), new.server, later.server) == []
