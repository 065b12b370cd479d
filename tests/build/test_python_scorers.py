"""Scorers in Python from the configuration: how they are found, and what is said where they cannot be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from w2s_core.build.engine import build_engine
from w2s_core.build.python_scorers import load_python_scorer
from w2s_core.config import EngineConfig, PairConfig, PythonScorerConfig, RewardModelConfig
from w2s_core.errors import ConfigurationError
from w2s_core.types import Hypothesis, TextPrompt

MODULE = """
from w2s_core import AnswerScorer

NUMBER = 3

class Scorers:
    @staticmethod
    def length(factor=1):
        return AnswerScorer(lambda prompt, answers: [factor * len(answer) for answer in answers])

def fails(**options):
    raise ValueError("no such file")

def a_function():
    return lambda prompt, answers: answers

def a_class():
    return AnswerScorer
"""


@pytest.fixture
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w2s_test_scorers.py").write_text(MODULE)
    (tmp_path / "w2s_test_broken.py").write_text("import a_module_that_nobody_has")
    (tmp_path / "w2s_test_wrong.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("_modules")
async def test_the_factory_is_called_with_the_options() -> None:
    scorer = load_python_scorer("length", PythonScorerConfig("w2s_test_scorers:Scorers.length", {"factor": -2}))
    assert scorer.check(TextPrompt("x"), 7) == 7
    async with scorer.open(TextPrompt("x")) as scoring:
        [score] = await scoring.score([Hypothesis(text="abc")])
    assert score.total == -6.0
    assert (scoring.scored_tokens, scoring.provider_usage.calls) == (0, 0)


@pytest.mark.usefixtures("_modules")
@pytest.mark.parametrize(
    ("python", "reason"),
    [
        ("my_scorers", 'must be "package.module:factory", not `my_scorers`'),
        (":factory", 'must be "package.module:factory"'),
        ("my_scorers:", 'must be "package.module:factory"'),
        (
            "w2s_test_nowhere:x",
            "there is no module `w2s_test_nowhere`. It must be installed, or stand where the server starts.",
        ),
        ("w2s_test_nowhere.sub:x", "there is no module `w2s_test_nowhere`"),
        ("w2s_test_broken:x", "importing `w2s_test_broken` raised ModuleNotFoundError: No module named 'a_module_that"),
        ("w2s_test_wrong:x", "importing `w2s_test_wrong` raised ZeroDivisionError"),
        ("w2s_test_scorers:nothing", "the module `w2s_test_scorers` has no `nothing`"),
        ("w2s_test_scorers:NUMBER", "`w2s_test_scorers:NUMBER` cannot be called, it is a int"),
        ("w2s_test_scorers:fails", "`w2s_test_scorers:fails` raised ValueError: no such file"),
        (
            "w2s_test_scorers:Scorers.length",
            "raised TypeError: Scorers.length() got an unexpected keyword argument 'x'",
        ),
        ("w2s_test_scorers:a_function", "returned a function, which is no Scorer"),
        ("w2s_test_scorers:a_class", "returned a type, which is no Scorer"),
    ],
)
def test_what_cannot_be_loaded_names_its_key(python: str, reason: str) -> None:
    options: dict[str, Any] = {"x": 1} if python.endswith(("fails", "length")) else {}
    with pytest.raises(ConfigurationError) as caught:
        load_python_scorer("mine", PythonScorerConfig(python, options))
    assert str(caught.value).startswith("scorers.mine.python: ")
    assert reason in str(caught.value)


def test_one_name_stands_for_one_scorer() -> None:
    config = EngineConfig({}, {}, {"mine": PairConfig("x", None)}, scorers={"mine": PythonScorerConfig("a:b")})
    with pytest.raises(ConfigurationError, match=r"scorers\.mine: `mine` is already a name in pairs"):
        build_engine(config)


@pytest.mark.parametrize("label", [True, False])
def test_a_label_that_yaml_made_a_boolean_is_refused(label: bool) -> None:
    config = EngineConfig({}, {}, reward_models={"r": RewardModelConfig("demo:reviews-negative", label=label)})
    with pytest.raises(ConfigurationError, match=r"reward_models\.r\.label: is a boolean; put quotes"):
        build_engine(config)


@pytest.mark.usefixtures("_modules")
def test_an_engine_of_scorers_in_python_alone_has_no_worker() -> None:
    scorer = PythonScorerConfig("w2s_test_scorers:Scorers.length")
    engine = build_engine(EngineConfig({}, {}, scorers={"mine": scorer}))
    assert engine._worker_pool is None


def test_a_module_may_stand_where_the_server_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w2s_test_here.py").write_text("from w2s_core import AnswerScorer as factory", encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    load_python_scorer("mine", PythonScorerConfig("w2s_test_here:factory", {"score": len}))
    assert sys.path[-1] == str(tmp_path)
    del sys.modules["w2s_test_here"]
