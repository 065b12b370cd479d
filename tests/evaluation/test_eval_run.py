"""`w2s eval run`: against a server of fakes, killed half way; in-process on tiny models."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from server.commands.experiment_file import guidance_flags, load_file, make_experiment
from server.settings.config import ServerConfig
from tests.evaluation.conftest import PROMPTS, SEEDS
from tests.evaluation.eval_command import run
from tests.replica import ROOT, SOON
from tests.server.conftest import Serve, serve
from tests.server.fake_engine import Block, FakeEngine, Script, hypothesis
from tests.tiny import save_tiny
from w2s_core.engine.events import ChoiceFinished, RequestFinished
from w2s_core.evaluation.records import AnswerRecord, read_records
from w2s_core.types import ChatPrompt, GenerationRequest

__all__ = ["serve"]  # the fixture
ANSWERS = PROMPTS * SEEDS * 3


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
    made = make_experiment(load_file(experiment, {}), [], flags, max_tokens=7, setup={})
    rest = {"chunk_length": 5, "beam_width": 3}
    assert [(c.name, c.guidance) for c in made.conditions] == [
        ("plain", None),
        ("two pairs.a=1", {"pairs": {"a": 1, "b": 1}, **rest}),
        ("two pairs.a=2", {"pairs": {"a": 2, "b": 1}, **rest}),
    ]
    assert {tuple(c.sampling.items()) for c in made.conditions} == {(("max_tokens", 7), ("top_p", 0.5))}
    alone = make_experiment(load_file(experiment, {}), ["m"], flags, max_tokens=None, setup={})
    assert [c.name for c in alone.conditions] == ["m pairs.a=1", "m pairs.a=2"], "instead of the file's"


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
