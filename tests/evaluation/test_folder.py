"""The folder of an evaluation: what it keeps, and whose it is."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.evaluation.fake_server import (
    CHAT,
    GUIDED,
    PLAIN,
    FakeServer,
    chat_answer,
    experiment,
)
from w2s_core.errors import ConfigurationError
from w2s_core.evaluation.experiment import Condition, Experiment
from w2s_core.evaluation.folder import open_folder
from w2s_core.evaluation.records import AnswerRecord, EvalPrompt, read_records
from w2s_core.evaluation.run import run


async def test_more_of_everything_only_adds_answers(tmp_path: Path) -> None:
    server = FakeServer()
    await run(experiment(GUIDED), tmp_path, server.client(), 1)
    before = (tmp_path / "answers.jsonl").read_text()
    more = Condition("guided", "m", {"beam_width": 2}, {"max_tokens": 5}, seeds=3)
    prompts = (CHAT, EvalPrompt("d", ("Bye",)))
    await run(experiment(PLAIN, more, prompts=prompts, judges={"j": {}}), tmp_path, server.client(), 1)
    assert len(server.asked) == 2 + 6
    assert (tmp_path / "answers.jsonl").read_text().startswith(before)


@pytest.mark.parametrize(
    ("other", "keys"),
    [
        (
            experiment(Condition("guided", "m", {"beam_width": 3}, {"max_tokens": 5}, 2)),
            "conditions.guided.guidance.beam_width (was 2, is 3)",
        ),
        (
            experiment(Condition("guided", "n", {"beam_width": 2}, {}, 2)),
            'conditions.guided.model (was "m", is "n"), conditions.guided.sampling.max_tokens (was 5, is not set)',
        ),
        (
            experiment(Condition("guided", "m", {"beam_width": 2}, {"max_tokens": 5})),
            "conditions.guided.seeds (was 2, is 1)",
        ),
        (experiment(PLAIN), "conditions.guided (is missing now)"),
        (experiment(GUIDED, prompts=(EvalPrompt("c", ("Bye",)),)), "prompts (number 1 is another)"),
        (experiment(GUIDED, system="Rhyme." * 30), f'system (was not set, is "{"Rhyme." * 13}R…)'),
        (
            experiment(GUIDED, setup={"models": dict.fromkeys("abcdefg", 1)}),
            ", ".join(f"models.{name} (was not set, is 1)" for name in "abcde") + " and 2 more",
        ),
    ],
)
async def test_another_experiments_folder_is_refused(other: Experiment, keys: str, tmp_path: Path) -> None:
    await run(experiment(GUIDED), tmp_path, FakeServer().client(), 1)
    with pytest.raises(ConfigurationError) as caught:
        await run(other, tmp_path, FakeServer().client(), 1)
    assert str(caught.value) == (
        f"{tmp_path}: has the answers of another experiment, which differs in {keys}. Choose another --out."
    )


async def test_without_an_answer_nothing_stays(tmp_path: Path) -> None:
    server = FakeServer(lambda *_: httpx.Response(400, json={"error": {"message": "no"}}))
    (tmp_path / "mine").mkdir()
    for folder in ("new", "mine"):
        with pytest.raises(ConfigurationError, match="no"):
            await run(experiment(GUIDED), tmp_path / folder, server.client(), 1)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]  # noqa: ASYNC240


async def test_a_folder_whose_answers_were_deleted_belongs_to_nobody(tmp_path: Path) -> None:
    await run(experiment(GUIDED), tmp_path, FakeServer().client(), 1)
    (tmp_path / "answers.jsonl").unlink()
    other = experiment(PLAIN, prompts=(CHAT, EvalPrompt("d", ("Bye",))), system="Rhyme.", setup={"large": "x"})
    await run(other, tmp_path, FakeServer().client(), 1)


async def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    with open_folder(tmp_path, experiment()), pytest.raises(ConfigurationError, match="another run is writing into it"):
        await run(experiment(), tmp_path, FakeServer().client(), 1)


async def test_half_a_surrogate_pair_in_an_answer_is_kept_as_a_replacement(tmp_path: Path) -> None:
    server = FakeServer(lambda _path, _body: httpx.Response(200, content=json.dumps(chat_answer("a\ud800b"))))
    await run(experiment(PLAIN), tmp_path / "out", server.client(), 1)
    (record,) = read_records(tmp_path / "out" / "answers.jsonl", AnswerRecord)
    assert record.texts == ("a?b",)
