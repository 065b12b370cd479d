"""Two sentiment judges that are independent of the pair: a classifier trained on other sentences, and a lexicon.

They need scikit-learn and vaderSentiment, which the extra `eval` installs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from w2s_core.demo.data import Sentence, splits

_INVERSE_PENALTY = 10.0  # lowest log-loss in five-fold cross-validation within the judge's own split


class SentimentJudge:
    """P(positive | text) by a logistic regression on TF-IDF features of words and bigrams."""

    def __init__(self, training: Sequence[Sentence]) -> None:
        self._model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=_INVERSE_PENALTY, max_iter=1000)
        )
        self._model.fit([s.text for s in training], [s.positive for s in training])

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One probability per text, in order."""
        return [float(p) for p in self._model.predict_proba(list(texts))[:, 1]]


class Vader:
    """VADER's compound score, −1 (worst) … 1 (best), by a lexicon and rules, untrained (Hutto & Gilbert 2014)."""

    def __init__(self) -> None:
        self._analyzer = SentimentIntensityAnalyzer()

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One score per text."""
        return [float(self._analyzer.polarity_scores(text)["compound"]) for text in texts]


def positive(_prompt: str, answer: str) -> float:
    """P(positive | answer) by the SentimentJudge, which the first call fits: a judge of film reviews for
    `judges: {NAME: {python: "w2s_core.evaluation.judge:positive"}}`.
    """
    return _sentiment_judge()([answer])[0]


@cache
def _sentiment_judge() -> SentimentJudge:
    _, judging, _ = splits()
    return SentimentJudge(judging)


def auc(scores: Sequence[float], sentences: Sequence[Sentence]) -> float:
    """ROC AUC: the probability that a positive sentence scores above a negative one; ties count one half."""
    return float(roc_auc_score([s.positive for s in sentences], list(scores)))
