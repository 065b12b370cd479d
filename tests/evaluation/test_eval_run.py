"""`w2s eval run`: against a server of fakes, killed half way; in-process on tiny models; errors with exit code 2."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from server.cli import main
from server.commands.experiment_file import guidance_flags, load_file, make_experiment
from server.settings.config import ServerConfig
from tests.replica import ROOT, SOON
from tests.server.conftest import Serve, serve
from tests.server.fake_engine import Block, FakeEngine, Script, hypothesis
from tests.tiny import save_tiny
from w2s_core.engine.events import ChoiceFinished, RequestFinished
from w2s_core.evaluation.records import AnswerRecord, read_records
from w2s_core.types import ChatPrompt, GenerationRequest

__all__ = ["serve"]  # the fixture
PROMPTS, SEEDS = 6, 2
CONDITIONS = {"plain": {"model": "plain"}, "CBS": {"model": "steered", "guidance": {"beam_width": [1, 2]}}}
ANSWERS = PROMPTS * SEEDS * 3


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """A file with six prompts × three conditions × two seeds."""
    lines = [json.dumps({"id": f"p{i}", "prompt": f"Frage {i} – é"}, ensure_ascii=False) for i in range(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    path = tmp_path / "experiment.yaml"
    content = {"prompts": "prompts.jsonl", "conditions": CONDITIONS, "seeds": SEEDS, "sampling": {"max_tokens": 9}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def answering(request: GenerationRequest) -> Script:
    """An answer that tells which request it is for."""
    (prompt,) = request.prompts
    assert isinstance(prompt, ChatPrompt)
    width = request.guidance.beam_width if request.guidance else 0
    text = f"{request.model} {width} {request.sampling.seed}: {prompt.messages[-1]['content']}"
    return [ChoiceFinished(0, hypothesis(text), False), RequestFinished(3, 2, None)]


async def start(url: str, experiment: Path, out: Path, *flags: str, **env: str) -> asyncio.subprocess.Process:
    arguments = ["eval", "run", str(experiment), "--url", url, "--out", str(out), "--concurrency", "2", *flags]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from server.cli import main; main()", *arguments),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def finished(process: asyncio.subprocess.Process) -> str:
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


def records(out: Path) -> list[AnswerRecord]:
    """The answers on disk in a fixed order, without what time they took."""
    found = read_records(out / "answers.jsonl", AnswerRecord)
    return sorted((replace(record, seconds=0.0) for record in found), key=lambda record: record.key)


class Stopping:
    """Answers so many requests, and blocks the others."""

    def __init__(self, answers: int) -> None:
        self.left = answers
        self.both_blocked = asyncio.Event()
        self._blocked = 0

    def __call__(self, request: GenerationRequest) -> Script:
        if self.left:
            self.left -= 1
            return answering(request)
        self._blocked += 1
        if self._blocked == 2:
            self.both_blocked.set()
        return [Block()]


async def test_a_killed_run_goes_on_where_it_stopped(serve: Serve, experiment: Path, tmp_path: Path) -> None:
    whole = FakeEngine(answering)
    await finished(await start(await serve(whole), experiment, tmp_path / "whole"))
    assert len(whole.requests) == ANSWERS

    stopping = Stopping(answers=13)
    engine = FakeEngine(stopping)
    url, out = await serve(engine), tmp_path / "killed"
    process = await start(url, experiment, out)
    await asyncio.wait_for(
        stopping.both_blocked.wait(), SOON
    )  # each of the two has written its last answer before it asked again
    process.kill()
    await process.communicate()
    assert process.returncode == -signal.SIGKILL
    saved = read_records(out / "answers.jsonl", AnswerRecord)
    assert len(saved) == 13
    with (out / "answers.jsonl").open("ab") as file:
        file.write('{"prompt": "p5", "texts": ["é'.encode()[:-1])  # as if it had been killed while it wrote

    engine.script, asked = answering, len(engine.requests)
    table = await finished(await start(url, experiment, out))
    assert len(engine.requests) - asked == ANSWERS - 13, "only what was missing"
    assert records(out) == records(tmp_path / "whole")
    assert len({record.key for record in records(out)}) == ANSWERS
    assert read_records(out / "answers.jsonl", AnswerRecord)[:13] == saved
    assert "CBS beam_width=2" in table

    figures = [json.loads((folder / "results.json").read_text()) for folder in (out, tmp_path / "whole")]
    for content in figures:
        for summary in content["summaries"]:
            del summary["estimates"]["seconds"]
    assert figures[0] == figures[1]


async def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(serve: Serve, experiment: Path, tmp_path: Path) -> None:
    stopping = Stopping(answers=4)
    engine = FakeEngine(stopping)
    process = await start(await serve(engine), experiment, tmp_path / "out")
    await asyncio.wait_for(stopping.both_blocked.wait(), SOON)
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert f"What is done is in {tmp_path / 'out'}; the same command goes on from there." in err.decode()
    assert "Traceback" not in err.decode()
    assert len(records(tmp_path / "out")) == 4


async def test_json_goes_to_stdout_alone(serve: Serve, experiment: Path, tmp_path: Path) -> None:
    engine = FakeEngine(answering)
    flags = ["--limit", "2", "--seeds", "1", "--json", "--baseline", "CBS beam_width=1"]
    process = await start(await serve(engine), experiment, tmp_path / "out", *flags)
    content = json.loads(await finished(process))
    assert content == json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["experiment"]["baseline"] == "CBS beam_width=1"
    assert [row["answers"] for row in content["summaries"]] == [2, 2, 2]
    assert {request.sampling.max_tokens for request in engine.requests} == {9}


async def test_the_key_of_a_server_is_in_the_environment(serve: Serve, experiment: Path, tmp_path: Path) -> None:
    url = await serve(FakeEngine(answering), ServerConfig(api_keys={"me": {"key": "sk-secret"}}))
    flags = ["--limit", "1", "--api-key-env", "MY_KEY"]
    refused = await start(url, experiment, tmp_path / "out", *flags, MY_KEY="sk-other")
    _, err = await refused.communicate()
    assert refused.returncode == 2
    assert "(401)" in err.decode()
    await finished(await start(url, experiment, tmp_path / "out", *flags, MY_KEY="sk-secret"))


def test_flags_go_over_the_guidance_of_the_conditions_that_have_any(experiment: Path) -> None:
    conditions = {
        "plain": {"model": "m"},
        "two": {"model": "m", "guidance": {"pairs": {"a": 1, "b": 1}, "chunk_length": 5}},
    }
    content = {"prompts": "prompts.jsonl", "conditions": conditions, "sampling": {"max_tokens": 9, "top_p": 0.5}}
    experiment.write_text(yaml.safe_dump(content), encoding="utf-8")
    flags = guidance_flags(["pairs.a=1,2", "beam_width=3"])
    made = make_experiment(load_file(experiment, {}), [], flags, max_tokens=7)
    rest = {"chunk_length": 5, "beam_width": 3}
    assert [(c.name, c.guidance) for c in made.conditions] == [
        ("plain", None),
        ("two pairs.a=1", {"pairs": {"a": 1, "b": 1}, **rest}),
        ("two pairs.a=2", {"pairs": {"a": 2, "b": 1}, **rest}),
    ]
    assert {tuple(c.sampling.items()) for c in made.conditions} == {(("max_tokens", 7), ("top_p", 0.5))}
    alone = make_experiment(load_file(experiment, {}), ["m"], flags, max_tokens=None)
    assert [c.name for c in alone.conditions] == ["m pairs.a=1", "m pairs.a=2"], "instead of the file's"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["eval", "run", *map(str, arguments)])


def test_in_this_process_with_models_by_flags(experiment: Path, tmp_path: Path) -> None:
    models = {
        name: str(save_tiny(tmp_path / name, seed=seed)) for seed, name in enumerate(("large", "tuned", "untuned"))
    }
    config: dict[str, Any] = {
        "large_models": {"large": {"model": models["large"]}},
        "pairs": {"pair": {"tuned": models["tuned"], "untuned": models["untuned"], "prompt_template": ""}},
        "served_models": {
            "plain": {"large": "large"},
            "guided": {"large": "large", "guidance": {"pairs": {"pair": 1.0}, "successors": 2}},
        },
        "server": {"api_keys": {"someone": {"key": "sk-secret"}}},  # for connections, which there are none of
        "workers": {"dtype": "float32"},
    }
    (tmp_path / "w2s.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    prompts, out = experiment.with_name("prompts.jsonl"), tmp_path / "out"
    flags = ["--config", tmp_path / "w2s.yaml", "--prompts", prompts, "--max-tokens", 6, "--limit", 2, "--out", out]
    grid = ["--model", "plain", "--model", "guided", "--guidance", "beam_width=1,2", "--guidance", "chunk_length=3"]
    found = run(*flags, *grid)
    assert found.exit_code == 0, found.output
    rows = {record.condition: record for record in records(out)}
    assert list(rows) == ["guided beam_width=1", "guided beam_width=2", "plain"]
    sampled = {name: record.sampled_tokens for name, record in rows.items()}
    assert sampled["plain"] <= 6 < sampled["guided beam_width=2"] <= 24
    assert all(record.logprob is not None and record.logprob < 0 for record in rows.values())
    assert "tokens sampled" in found.stdout
    assert "left" in found.stderr, "a progress bar"
    again = run(*flags, *grid)
    assert again.stdout == found.stdout, "also the seconds"


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ({}, [], "prompts: name a file, by --prompts or in the experiment's file."),
        ({"prompts": "prompts.jsonl"}, [], "conditions: name a served model by --model, or conditions in the"),
        ({"promts": "prompts.jsonl"}, [], "experiment.yaml: promts: unknown key"),
        (
            {"conditions": {"x": {"modell": "m"}}},
            [],
            "conditions.x.model: Field required; conditions.x.modell: unknown",
        ),
        ({"sampling": {"seed": 3}}, [], "sampling: `seed` is no sampling parameter"),
        ({"seeds": 0}, [], "seeds: Input should be greater than or equal to 1"),
        (
            {"prompts": "nowhere.jsonl", "conditions": {"x": {"model": "m"}}},
            [],
            "nowhere.jsonl: cannot be read: No such",
        ),
        (
            {"prompts": "prompts.jsonl", "conditions": {"x": {"model": "m"}}, "baseline": "y"},
            [],
            "baseline: no condition is named `y` (there are: x).",
        ),
        ({}, ["--guidance", "beam_width"], "--guidance: `beam_width` is not KEY=VALUE or KEY=VALUE,VALUE."),
        ({}, ["--guidance", "pairs=1", "--guidance", "pairs.a=1"], "guidance.pairs.a: `pairs` has a value already"),
        ({}, ["--url", "http://127.0.0.1:9", "--config", "x.yaml"], "--config: is for a server in this process"),
        ({}, ["--api-key-env", "KEY"], "--api-key-env: is for a running server, which --url names."),
        ({}, ["--url", "http://127.0.0.1:9", "--api-key-env", "NO_KEY"], "the environment has no variable NO_KEY"),
        ({"prompts": "prompts.jsonl"}, ["--model", "m", "--url", "http://127.0.0.1:9"], "cannot be reached"),
        ({"prompts": "prompts.jsonl"}, ["--model", "m", "--url", "127.0.0.1:9"], "cannot be reached"),
    ],
)
def test_a_mistake_is_one_line(
    content: dict[str, Any], flags: list[str], message: str, experiment: Path, tmp_path: Path
) -> None:
    experiment.write_text(yaml.safe_dump(content), encoding="utf-8")
    found = run(experiment, *flags, "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert message in found.stderr
    assert found.stderr.startswith("w2s: ")
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["prompts.jsonl", "answers.jsonl", "experiment.json"])
def test_a_folder_with_somebody_elses_file_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    mine = tmp_path / name
    mine.write_text('{"prompt": "Frage", "own": 1}\n', encoding="utf-8")
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text('{"prompt": "Frage"}\n', encoding="utf-8")
    found = run("--prompts", prompts, "--model", "m", "--url", "http://127.0.0.1:9", "--out", tmp_path)
    assert found.exit_code == 2
    assert f"has a {name} that is not of an evaluation. Choose another --out." in found.stderr
    assert mine.read_text(encoding="utf-8") == '{"prompt": "Frage", "own": 1}\n'


@pytest.mark.parametrize("key", ["sk-secret\nx", "sk-secret\u20ac", " "])
def test_a_key_that_no_header_can_carry_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MY_KEY", key)
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text('{"prompt": "Frage"}\n', encoding="utf-8")
    asked = ("--prompts", prompts, "--model", "m", "--out", tmp_path / "out")
    found = run(*asked, "--url", "http://127.0.0.1:9", "--api-key-env", "MY_KEY")
    assert (found.exit_code, found.stderr) == (2, "w2s: --api-key-env: the value of MY_KEY cannot be an API key.\n")
    found = run(*asked, "--url", "http://user:sk-secret@127.0.0.1:9")
    assert found.exit_code == 2
    assert "must not contain a user name or password" in found.stderr
    assert "sk-secret" not in found.output
