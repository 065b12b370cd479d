"""The figures of a pair's check against their definitions, and its verdict on pairs of known faults."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from tests.fakes import FakeScorer
from w2s_core.errors import ContextLengthError
from w2s_core.pairs.check import PREFIX_WORDS, PairCheck, ScoredAnswer, _auc, _spearman, check, score_answers
from w2s_core.pairs.preferences import Answer
from w2s_core.pairs.report import as_json, draw, summary
from w2s_core.types import Prompt, TextPrompt

FEW = st.integers(-3, 3).map(float)  # few, so that some are equal


@given(st.lists(st.tuples(FEW, st.booleans()), min_size=1, max_size=30))
def test_the_auc_is_the_share_of_good_and_bad_ones_in_order(items: list[tuple[float, bool]]) -> None:
    good, bad = ([value for value, label in items if label is wanted] for wanted in (True, False))
    found = _auc(np.array([value for value, _ in items]), np.array([label for _, label in items]))
    if not good or not bad:
        assert np.isnan(found)
        return
    won = [(a > b) + 0.5 * (a == b) for a in good for b in bad]
    assert found == pytest.approx(sum(won) / len(won))


@given(st.lists(st.tuples(FEW, FEW), min_size=3, max_size=30))
def test_the_correlation_is_spearmans(items: list[tuple[float, float]]) -> None:
    one, other = np.array(items).T
    if np.ptp(one) and np.ptp(other):
        assert _spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)
    else:
        assert _spearman(one, other) == 0


def scored(score: Callable[[bool, int], float], count: int = 200) -> list[ScoredAnswer]:
    """Comparisons whose answers have 1 to 30 words; `score(good, words)` is that of the whole answer."""
    chance = np.random.default_rng(0)
    found = []
    for i in range(count):
        good, words = i % 2 == 0, int(chance.integers(1, 31))
        answer = Answer(TextPrompt("x"), " ".join(["word"] * words), good=good, partner=i // 2)
        value = score(good, words) + 0.01 * float(chance.normal())
        found.append(ScoredAnswer(answer, (*(value / 2 for _ in PREFIX_WORDS), value)))
    return found


CHANCE = np.random.default_rng(1)
PAIRS: dict[str, Callable[[bool, int], float]] = {
    "steers": lambda good, words: good + float(CHANCE.normal()),
    "exchanged": lambda good, words: float(CHANCE.normal()) - good,
    "weak": lambda good, words: float(CHANCE.normal()),
}


@pytest.mark.parametrize("verdict", PAIRS)
def test_the_verdict(verdict: str) -> None:
    found = check(scored(PAIRS[verdict]))
    assert found.verdict == verdict
    assert found.auc.low <= found.auc.mean <= found.auc.high


@pytest.mark.parametrize("comparisons", [1, 5, 19])
@pytest.mark.parametrize("sign", [1, -1])
def test_few_answers_make_no_verdict(comparisons: int, sign: int) -> None:
    found = check(scored(lambda good, words: 9.0 * sign * good, 2 * comparisons))
    assert found.verdict == "too few"
    assert found.accuracy is not None
    assert found.accuracy.mean == found.auc.mean == (sign == 1)
    for estimate in (found.accuracy, found.auc):
        assert 0.15 < estimate.high - estimate.low < 0.8, "resampling gives no width at all"
    assert "There are too few answers to tell whether the pair steers: it takes 20 good ones and 20 bad" in summary(
        found
    )
    assert re.search(r"by so many nats +-?\d+\.\d+\n", summary(found))
    assert as_json(found)["margin"]["low"] is None
    assert check(scored(lambda good, words: 9.0 * good, 40)).verdict == "steers"


@pytest.mark.parametrize(("sign", "verdict"), [(1, "steers"), (-1, "exchanged")])
@pytest.mark.parametrize("comparisons", [20, 1000])
def test_a_perfect_pair_has_an_interval_with_a_width(comparisons: int, sign: int, verdict: str) -> None:
    """The true share of a pair that is right n times in n may well be below 1: by the rule of three down to 1 − 3/n."""
    found = check(scored(lambda good, words: 9.0 * sign * good, 2 * comparisons))
    assert found.verdict == verdict
    for estimate in (found.accuracy, found.auc):
        assert estimate is not None
        assert estimate.mean == (sign == 1)
        assert 2 / comparisons < estimate.high - estimate.low < 4 / comparisons


def test_two_equal_models() -> None:
    answers = [ScoredAnswer(s.answer, (0.0,) * len(s.scores)) for s in scored(lambda good, words: 0.0)]
    found = check(answers)
    assert (found.verdict, found.auc.mean, found.length_correlation) == ("equal", 0.5, 0.0)
    assert found.accuracy is not None
    assert found.accuracy.mean == 0.5


def test_a_pair_that_likes_length_alone_where_good_answers_are_longer() -> None:
    answers = [s for s in scored(lambda good, words: 0.1 * words, 600) if s.answer.good == (s.words > 12)]
    found = check(answers)
    assert found.verdict == "likes length"
    assert found.length_correlation > 0.9
    assert "only likes long answers" in summary(found)


def test_a_pair_that_sums_over_tokens_is_told_to_take_the_mean() -> None:
    found = check(scored(lambda good, words: words * (-1.0 if good else -1.3), 400))
    assert found.length_penalty == 1
    assert "set guidance.length_penalty to 1" in summary(found)
    assert check(scored(PAIRS["steers"])).length_penalty == 0


def test_comparisons_are_counted_by_hand() -> None:
    texts = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 2.0, "e": 0.0}
    answers = [
        ScoredAnswer(Answer(TextPrompt(""), text, good=i % 2 == 0, partner=i // 2), (*[0.0] * len(PREFIX_WORDS), value))
        for i, (text, value) in enumerate(texts.items())
    ]
    found = check(answers, too_long=1)  # the fifth has lost its partner
    assert found.accuracy is not None
    assert found.margin is not None
    assert (found.accuracy.mean, found.margin.mean) == (0.75, 1.0)
    assert (found.answers, found.too_long) == (5, 1)
    assert "5 answers, 1 more do not fit its context" in summary(found)


async def test_beginnings_and_whole_answers_are_scored_and_long_ones_left_out() -> None:
    class Short(FakeScorer):
        def check(self, prompt: Prompt, max_tokens: int) -> int:
            if prompt == TextPrompt("long"):
                raise ContextLengthError(10, 11, 1, "prompt")
            return max_tokens

    scorer = Short(lambda text, ended: len(text.split()) + 100.0 * ended)
    text = " ".join(["a"] * 12)
    answers = [Answer(TextPrompt(prompt), text, good=True, partner=None) for prompt in ("x", "long")]
    done: list[None] = []
    found = await score_answers(scorer, answers, lambda: done.append(None))
    assert found[0] is not None
    assert found[0].scores == (2, 5, 10, 12, 12, 112)
    assert found[1] is None
    assert len(done) == 2
    assert scorer.open_sessions == 0


def test_json_and_plot(tmp_path: Path) -> None:
    found: PairCheck = check(scored(PAIRS["steers"]))
    content = json.loads(json.dumps(as_json(found)))
    assert content["verdict"] == "steers"
    low, high = content["auc_interval"]
    assert low < content["auc"] < high
    assert set(content) >= {"accuracy", "auc", "length_correlation", "verdict", "margin", "auc_by_words"}
    draw(found, tmp_path / "plot.png")
    assert matplotlib.image.imread(tmp_path / "plot.png").shape[0] > 200
