"""The `w2s` command: configuration errors are one line and exit code 2; `serve` starts, announces itself and stops."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from server.cli import SERVER_FLAGS, main, nest_flags
from server.serve import listen, ready_message, socket_url
from server.settings.config import ServerConfig
from w2s_core.errors import ConfigurationError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    for name in list(os.environ):
        if name.startswith("W2S_"):
            monkeypatch.delenv(name)
    return CliRunner()


def refused(runner: CliRunner, *args: str, env: dict[str, str] | None = None) -> str:
    result = runner.invoke(main, ["serve", *args], env=env)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, "one line"
    assert result.stderr.startswith("w2s: ")
    return result.stderr


def test_an_unknown_key_in_the_file(runner: CliRunner, tmp_path: Path) -> None:
    path = tmp_path / "w2s.yaml"
    path.write_text("server: {prot: 8000}")
    message = refused(runner, "--config", str(path))
    assert "server.prot: unknown key" in message
    assert str(path) in message
    assert "server.prot" in refused(runner, env={"W2S_CONFIG": str(path)})


def test_an_unknown_key_in_the_environment(runner: CliRunner) -> None:
    assert "W2S_SERVER__PROT" in refused(runner, env={"W2S_SERVER__PROT": "1"})
    assert "W2S_PORT" in refused(runner, env={"W2S_PORT": "1"})


def test_a_file_that_is_not_there(runner: CliRunner, tmp_path: Path) -> None:
    assert "nowhere.yaml" in refused(runner, "--config", str(tmp_path / "nowhere.yaml"))


def test_a_folder_of_a_model_that_is_not_there(runner: CliRunner, tmp_path: Path) -> None:
    path = tmp_path / "w2s.yaml"
    path.write_text("large_models: {m: {model: ./gone}}\nserved_models: {m: {large: m}}")
    assert "large_models.m.model: no such folder: ./gone." in refused(runner, "--config", str(path))


def test_a_flag_out_of_range_names_its_key(runner: CliRunner) -> None:
    assert "server.port" in refused(runner, "--port", "70000")
    assert "workers.threads" in refused(runner, "--threads", "0")


def test_an_address_in_use(runner: CliRunner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"server.port {port}" in refused(runner, "--port", str(port))


def test_flags_are_nested_like_the_file() -> None:
    nothing = dict.fromkeys([*SERVER_FLAGS, "dtype", "quantization", "threads"]) | {"devices": ()}
    assert nest_flags(nothing) == {}
    assert nest_flags({**nothing, "port": 0, "threads": "auto"}) == {
        "server": {"port": 0},
        "workers": {"threads": "auto"},
    }
    assert nest_flags({**nothing, "devices": ("cpu", "cuda:0")}) == {"workers": {"devices": ("cpu", "cuda:0")}}
    assert nest_flags({**nothing, "devices": ("auto",)}) == {"workers": {"devices": "auto"}}


def test_models(runner: CliRunner) -> None:
    listed = runner.invoke(main, ["models", "list"])
    assert "reviews-positive" in listed.stdout.split()
    for name in ("reviews-negative", "demo:reviews-negative"):
        fetched = runner.invoke(main, ["models", "fetch", name])
        assert fetched.exit_code == 0, fetched.output
        assert fetched.stdout.strip().endswith("reviews-negative")
    unknown = runner.invoke(main, ["models", "fetch", "nobody"])
    assert unknown.exit_code == 2
    assert "nobody" in unknown.stderr


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:")])
def test_the_url_is_one_that_can_be_called(host: str, url: str) -> None:
    with listen(ServerConfig(host=host, port=0)) as listening:
        assert socket_url(listening) == f"{url}{listening.getsockname()[1]}"


def test_what_is_accepted_sends_at_once() -> None:
    """Otherwise, on a kept connection, a response's body waits 40 ms for the client to acknowledge its headers."""
    with listen(ServerConfig(port=0)) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_host_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"server\.host"):
        listen(ServerConfig(host="203.0.113.1", port=0))  # a documentation address: nobody's


def curl_of(message: str) -> list[str]:
    return shlex.split(message[message.index("curl ") :].replace("\\\n", " "))


def test_the_curl_says_what_its_placeholder_stands_for() -> None:
    """The server keeps only hashes of keys, so it cannot print one."""
    message = ready_message("http://h:1", ["plain"], "$API_KEY")
    assert "Try, with one of the server's API keys in API_KEY (`export API_KEY=...`):" in message
    assert "Bearer $API_KEY" in message
    assert "API_KEY" not in ready_message("http://h:1", ["plain"], None)


@pytest.mark.parametrize("key", [None, "sesame"])
def test_the_curl_can_be_pasted(key: str | None) -> None:
    command = curl_of(ready_message("http://h:1", ["plain", "guided"], key))
    assert command[:2] == ["curl", "http://h:1/v1/chat/completions"]
    assert "Content-Type: application/json" in command
    assert (f"Authorization: Bearer {key}" in command) == (key is not None)
    body = json.loads(command[-1])
    assert body["model"] == "guided"
    assert 0 < body["max_tokens"] <= 64, "without a limit the answer fills the context, which takes minutes"


# The command as a process, its engine a fake

SERVE = """
import sys, types
from tests.fakes import fake_engine
from w2s_core.errors import ConfigurationError
def build(config):
    {body}
sys.modules["w2s_core.build.engine"] = types.SimpleNamespace(build_engine=build)  # the real one is slow to import
from server.cli import main
main()
"""


@contextmanager
def started(body: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A `w2s serve` process whose engine is built by `body`."""
    command = [sys.executable, "-c", SERVE.format(body=body), "serve", "--port", "0", *args]
    env = {name: value for name, value in os.environ.items() if not name.startswith("W2S_")}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=-1, stderr=-1, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def until(process: subprocess.Popen[str], words: str) -> str:
    """Reads stderr up to the line with these words."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"{words!r} never came:\n{seen}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_says_how_to_call_it_and_stops_with_0(number: signal.Signals) -> None:
    with started("return fake_engine()") as process:
        message = until(process, "-d ")
        assert "plain, guided" in message
        command = curl_of(message)
        headers = dict(part.split(": ") for part in command if ": " in part and not part.startswith("{"))
        request = urllib.request.Request(command[1], command[-1].encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["choices"][0]["message"]["content"] is not None
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == "", "stdout is for programs"


def test_a_signal_while_loading_ends_it_too() -> None:
    with started("import time; time.sleep(600)") as process:
        until(process, "startup complete")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_model_that_cannot_be_loaded_is_exit_code_1() -> None:
    with started("raise ConfigurationError('large_models.x.model: is nowhere')") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "w2s: the models could not be loaded: large_models.x.model: is nowhere" in err
    assert "Traceback" not in err
    assert out == ""


def test_a_model_that_cannot_run_here_is_exit_code_2() -> None:
    problem = "large_models.x.model: big is quantized by magic, which needs a GPU."
    code = f"from w2s_core.errors import UnsupportedModelError; raise UnsupportedModelError({problem!r})"
    with started(code) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"w2s: the models could not be loaded: {problem}" in err
    assert "Traceback" not in err


def test_a_bug_while_loading_is_exit_code_1_with_its_trace() -> None:
    with started("raise ZeroDivisionError('oops')") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "could not be loaded: oops" in err
    assert "Traceback" in err


def test_json_logs_are_json_from_the_first_line_to_the_last() -> None:
    with started("return fake_engine()", "--log-format", "json") as process:
        seen = until(process, "Ready at")
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    lines = [json.loads(line) for line in (seen + rest).splitlines()]
    assert {"time", "level", "logger", "message"} == {key for line in lines for key in line}
