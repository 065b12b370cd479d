"""Judging all answers: resumed, judged anew where something changed, and what becomes of failures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.judges.answers import evaluation
from w2s_core.errors import UnavailableError, W2SError
from w2s_core.evaluation.records import read_records
from w2s_core.judges.judge import Case, Judge, JudgeFunction, Opinion
from w2s_core.judges.judging import FILE, Judgement, cases, judge_all, open_judgements

ANSWERS = {
    "base": {("p", 0): "a", ("q", 0): "bb"},
    "ours": {("p", 0): "ccc", ("q", 0): "dddd", ("r", 0): "no rival"},
}


class Counting:
    """A judge by length that fails after `failing_after` answers, and knows what it was asked."""

    def __init__(self, failing_after: int = 99, options: str = "", pairwise: bool = False) -> None:
        self.asked: list[Case] = []
        self.starts = 0
        self._failing_after = failing_after
        self._options = options
        self._pairwise = pairwise

    async def _judge(self, case: Case) -> Opinion:
        if len(self.asked) == self._failing_after:
            raise UnavailableError("The judge is tired.", retry_after_s=5)
        self.asked.append(case)
        return Opinion(float(len(case.answer.texts[0])), said=("é\n",))

    @asynccontextmanager
    async def _start(self) -> AsyncIterator[JudgeFunction]:
        self.starts += 1
        yield self._judge

    @property
    def judge(self) -> Judge:
        return Judge("j", self._pairwise, self._options, self._start())


async def judge(
    folder: Path, judge: Counting, answers: dict[str, dict[tuple[str, int], str]] = ANSWERS, **more: str
) -> list[Judgement]:
    every = evaluation(folder, answers, **more)
    with open_judgements(folder) as log:
        return await judge_all(judge.judge, cases(every, judge.judge.pairwise), log, 1)


async def test_judgements_are_in_the_order_of_answers_and_on_disk(tmp_path: Path) -> None:
    found = await judge(tmp_path, Counting())
    assert [j.value for j in found] == [1.0, 2.0, 3.0, 4.0, 8.0]
    assert read_records(tmp_path / FILE, Judgement) == found


async def test_a_judge_that_compares_gets_the_baselines_answers(tmp_path: Path) -> None:
    counting = Counting(pairwise=True)
    await judge(tmp_path, counting)
    assert [(c.answer.texts, c.baseline.texts) for c in counting.asked if c.baseline] == [
        (("ccc",), ("a",)),
        (("dddd",), ("bb",)),
    ]
    assert len(counting.asked) == 2, "neither the baseline itself nor an answer without a rival"


async def test_a_stopped_run_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    with pytest.raises(W2SError, match=r"^The judge is tired. 3 of 5 judgements are in .*; the same command goes on"):
        await judge(tmp_path, Counting(failing_after=3))
    with (tmp_path / FILE).open("ab") as file:
        file.write('{"judge": "j", "condition": "é'.encode()[:-1])  # as a killed run leaves it
    second = Counting()
    found = await judge(tmp_path, second)
    assert [c.answer.texts[0] for c in second.asked] == ["dddd", "no rival"]
    assert [j.value for j in found] == [1.0, 2.0, 3.0, 4.0, 8.0]
    third = Counting()
    assert await judge(tmp_path, third) == found
    assert third.starts == 0, "its models are not even loaded"


async def test_what_changes_is_judged_anew(tmp_path: Path) -> None:
    await judge(tmp_path, Counting())
    other_options = Counting(options="temperature 1")
    await judge(tmp_path, other_options)
    assert len(other_options.asked) == 5
    changed = Counting()
    await judge(tmp_path, changed, {**ANSWERS, "base": {("p", 0): "a", ("q", 0): "new"}})
    assert [c.answer.texts[0] for c in changed.asked] == ["new"]
    rivals = Counting(pairwise=True)
    await judge(tmp_path, rivals)
    other_rival = Counting(pairwise=True)
    await judge(tmp_path, other_rival, {**ANSWERS, "base": {("p", 0): "a", ("q", 0): "new"}})
    assert [c.answer.texts[0] for c in other_rival.asked] == ["dddd"]
    system = Counting()
    await judge(tmp_path, system, system="Be brief.")
    assert len(system.asked) == 5
