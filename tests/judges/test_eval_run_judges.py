"""`w2s eval run` with judges: a model and an LLM judge at a fake API, printed, resumed and refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from server.cli import main
from w2s_core.config import WorkersConfig
from w2s_core.errors import ConfigurationError

KEY = "sk-secret"


class QuietServer(ThreadingHTTPServer):
    """Prints no traceback for a client that has left: it would stand in the output of the command under test."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class FakeOpenAI:
    """Serves `m`, which answers with as many words as `max_tokens`, and `judge`, which prefers what stands first and
    wants a key."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def respond(self, body: dict[str, Any], authorization: str | None) -> tuple[int, dict[str, Any]]:
        if body["model"] == "judge" and authorization != f"Bearer {KEY}":
            return 401, {"error": {"message": f"Incorrect API key: {authorization}"}}
        self.asked.append(body["model"])
        text = "First is best. [[A]]" if body["model"] == "judge" else " ".join(["word"] * body["max_tokens"])
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Yields its URL."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/v1/models"
                self.answer(200, {"data": [{"id": "m"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self.answer(*fake.respond(body, self.headers["authorization"]))

            def answer(self, status: int, content: dict[str, Any]) -> None:
                payload = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_: Any) -> None:
                pass

        server = QuietServer(("127.0.0.1", 0), Handler)
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture
def api() -> FakeOpenAI:
    return FakeOpenAI()


@pytest.fixture
def url(api: FakeOpenAI) -> Iterator[str]:
    with api.serving() as url:
        yield url


@pytest.fixture
def experiment(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "w2s_test_length.py").write_text("def words(prompt, answer): return len(answer.split())\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    prompts = [{"id": f"p{i}", "prompt": f"Question {i}?"} for i in range(3)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    content = {
        "prompts": "prompts.jsonl",
        "seeds": 2,
        "conditions": {
            "short": {"model": "m", "sampling": {"max_tokens": 2}},
            "long": {"model": "m", "sampling": {"max_tokens": 5}},
        },
        "judges": {
            "words": {"python": "w2s_test_length:words"},
            "llm": {"llm": {"base_url": f"{url}/v1", "model": "judge", "api_key_env": "JUDGE_KEY"}},
        },
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.setenv("JUDGE_KEY", KEY)
    return path


def run(experiment: Path, url: str, *flags: str) -> Result:
    out = str(experiment.with_name("out"))
    return CliRunner().invoke(main, ["eval", "run", str(experiment), "--url", url, "--out", out, *flags])


def test_win_rates_are_printed_and_written(experiment: Path, url: str, api: FakeOpenAI) -> None:
    found = run(experiment, url)
    assert found.exit_code == 0, found.output
    tables = found.stdout[found.stdout.index("Judge words") :].splitlines()
    words, llm = [line.split() for line in tables if line.startswith("long")]
    assert words == ["long", "6", "1.00", "[0.44,", "1.00]", "–", "5.00", "+3.00"], "all are longer"
    assert llm == ["long", "6", "0.50", "[0.13,", "0.87]", "–"]
    out = experiment.with_name("out")
    figures = json.loads((out / "results.json").read_text())["judgements"]
    assert figures["words"]["conditions"]["long"]["win_rate"]["mean"] == 1.0
    assert figures["llm"]["conditions"]["long"]["win_rate"]["mean"] == 0.5, "the first place is worth nothing"
    assert "Judge words" in (out / "report.html").read_text()
    assert len(json.loads((out / "alpaca_eval/long/model_outputs.json").read_text())) == 3
    assert api.asked.count("judge") == 12, "six comparisons in both orders"
    again = run(experiment, url, "--json")
    assert json.loads(again.stdout)["judgements"] == figures
    assert len(api.asked) == 12 + 12, "nothing twice"


def test_a_wrong_key_is_one_line_and_what_was_answered_is_kept(
    experiment: Path, url: str, api: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-wrong")
    found = run(experiment, url)
    assert found.exit_code == 2
    message = found.stderr.splitlines()[-1]
    assert message.startswith("w2s: judges.llm.llm: Incorrect API key: Bearer [key] (401)")
    assert message.endswith("the same command goes on from there.")
    assert "sk-wrong" not in found.output
    assert "Traceback" not in found.output
    monkeypatch.setenv("JUDGE_KEY", KEY)
    assert run(experiment, url).exit_code == 0
    assert api.asked.count("m") == 12, "nothing twice"


def test_a_mistake_is_found_before_anything_is_asked(experiment: Path, url: str, api: FakeOpenAI) -> None:
    content = yaml.safe_load(experiment.read_text())
    for judge, message in (
        ({"llm": {"base_url": url}}, "w2s: judges.words.llm.model: Field required"),
        ({"python": "w2s_test_length:letters"}, "w2s: judges.words.python: the module `w2s_test_length` has no"),
        ({"reward": {}}, "w2s: judges.words.reward: unknown key"),
    ):
        content["judges"]["words"] = judge
        experiment.write_text(yaml.safe_dump(content, sort_keys=False))
        found = run(experiment, url)
        assert found.exit_code == 2
        assert found.stderr.startswith(message)
        assert found.stderr.count("\n") == 1
    assert not api.asked


def test_a_judge_that_cannot_be_reached_is_told_at_once(experiment: Path, url: str) -> None:
    content = yaml.safe_load(experiment.read_text())
    content["judges"] = {"llm": {"llm": {"base_url": "http://127.0.0.1:9/v1", "model": "judge"}}}
    experiment.write_text(yaml.safe_dump(content, sort_keys=False))
    found = run(experiment, url)
    assert found.exit_code == 2
    message = found.stderr.splitlines()[-1]
    assert message.startswith("w2s: judges.llm.llm: the server at http://127.0.0.1:9/v1/ cannot be reached: ")
    assert "0 of 6 judgements" in message


def test_without_judges_there_are_a_page_and_files_as_well(experiment: Path, url: str) -> None:
    content = yaml.safe_load(experiment.read_text())
    del content["judges"]
    experiment.write_text(yaml.safe_dump(content, sort_keys=False))
    found = run(experiment, url)
    assert found.exit_code == 0, found.output
    out = experiment.with_name("out")
    assert "word word word" in (out / "report.html").read_text()
    assert len(list(out.glob("alpaca_eval/*/model_outputs.json"))) == 2
    assert f"wrote {out}/report.html, results.json and alpaca_eval/" in found.stderr
    assert found.stdout.count("\n\n") == 1, "the table alone"


def test_a_missing_extra_is_told_before_anything_is_asked(
    experiment: Path, url: str, api: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.commands.evaluate.find_spec", lambda name: None if name == "sklearn" else name)
    found = run(experiment, url)
    assert found.exit_code == 2
    assert "Judges need sklearn. This needs the extra `eval`" in found.stderr
    assert not api.asked


def test_judges_run_on_the_workers_of_the_configuration(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def make_judge(_name: str, _config: object, workers: WorkersConfig) -> None:
        seen.append(workers)
        raise ConfigurationError("enough")

    monkeypatch.setattr("w2s_core.judges.build.make_judge", make_judge)
    served = tmp_path / "w2s.yaml"
    served.write_text("workers: {dtype: float32, threads: 1}")
    arguments = ["eval", "run", str(experiment), "--config", str(served), "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(main, arguments)
    assert found.stderr == "w2s: enough\n"
    assert seen == [WorkersConfig(dtype="float32", threads=1)]
