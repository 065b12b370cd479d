"""Two judges of sentiment that know nothing of the pair: one fitted on sentences it never saw, one a fixed lexicon.

scikit-learn and vaderSentiment come with the extra `eval`.
"""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from w2s_core.demo.data import Sentence

_INVERSE_PENALTY = 10.0  # lowest log-loss in five-fold cross-validation within the judge's own split


class SentimentJudge:
    """P(positive | text) from TF-IDF of words and word pairs and a logistic regression."""

    def __init__(self, training: Sequence[Sentence]) -> None:
        self._model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=_INVERSE_PENALTY, max_iter=1000)
        )
        self._model.fit([s.text for s in training], [s.positive for s in training])

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One probability per text."""
        return [float(p) for p in self._model.predict_proba(list(texts))[:, 1]]


class Vader:
    """VADER's compound score, −1 (worst) … 1 (best): a lexicon and rules, no training (Hutto & Gilbert 2014)."""

    def __init__(self) -> None:
        self._analyzer = SentimentIntensityAnalyzer()

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One score per text."""
        return [float(self._analyzer.polarity_scores(text)["compound"]) for text in texts]


def auc(scores: Sequence[float], sentences: Sequence[Sentence]) -> float:
    """Probability that a random positive sentence scores above a random negative one, ties one half."""
    return float(roc_auc_score([s.positive for s in sentences], list(scores)))
