"""The judges work, are independent of the pair, and find the openers neutral."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from w2s_core.demo.data import Sentence, Split
from w2s_core.evaluation import sentiment
from w2s_core.evaluation.judge import SentimentJudge, Vader, auc
from w2s_core.evaluation.prompts import DEVELOPMENT, OPENERS

GOOD, BAD = "A warm and wonderful film.", "A dull, tedious mess."
Splits = tuple[Split, Split, Split]


def test_praise_is_judged_above_blame(three_splits: Splits) -> None:
    for judge in (SentimentJudge(three_splits[1]), Vader()):
        good, bad = judge([GOOD, BAD])
        assert good > bad + 0.3


def test_auc_on_sentences_that_no_one_learnt_from(three_splits: Splits) -> None:
    _, judging, testing = three_splits
    texts = [sentence.text for sentence in testing]
    assert auc(SentimentJudge(judging)(texts), testing) > 0.79
    assert auc(Vader()(texts), testing) > 0.65


def test_auc_by_hand() -> None:
    sentences = [Sentence("", 1.0), Sentence("", 1.0), Sentence("", -1.0), Sentence("", -1.0)]
    assert auc([3, 1, 2, 1], sentences) == pytest.approx((1 + 1 + 0 + 0.5) / 4)


def test_the_judge_learns_from_no_sentence_of_the_pair_nor_of_the_test(
    three_splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[Sentence] = []

    class Recorder(SentimentJudge):
        def __init__(self, training: Sequence[Sentence]) -> None:
            learnt.extend(training)
            super().__init__(training)

    monkeypatch.setattr(sentiment, "SentimentJudge", Recorder)
    sentiment.judges_and_aucs()
    pair, _, testing = three_splits
    assert len(learnt) == 3_500
    assert {s.text for s in learnt}.isdisjoint({s.text for s in (*pair, *testing)})


def test_openers_are_many_and_evaluated_ones_are_not_for_development() -> None:
    assert len(set(OPENERS)) == len(OPENERS) >= 50
    assert len(set(DEVELOPMENT)) == len(DEVELOPMENT) >= 12
    assert set(OPENERS).isdisjoint(DEVELOPMENT)


def test_openers_are_neutral(three_splits: Splits) -> None:
    assert set(Vader()([*OPENERS, *DEVELOPMENT])) == {0.0}
    opinions = SentimentJudge(three_splits[1])([*OPENERS, *DEVELOPMENT])
    assert 0.35 < sum(opinions) / len(opinions) < 0.65
