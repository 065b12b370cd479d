"""Length-controlled win rate: what the win rate were if both answers were of the same length.

AlpacaEval 2's idea (Dubois et al. 2024, arXiv:2404.04475, section 3), fitted on the comparisons of one condition and
one judge: P(win) = σ(θ + φ · tanh(Δ / s)), where Δ is the answer's length less the baseline's, in characters, and s the
standard deviation of Δ. The length-controlled win rate is σ(θ). The fit minimises the summed log-loss in nats plus
0.05 · (θ² + φ²), which keeps both finite where one side always wins. AlpacaEval's third term, the difficulty of each
instruction, is left out, because it is fitted on the answers of many models.

Where all answers are longer than the baseline's, or all are shorter, none shows how equal lengths would be judged: the
fit would only extrapolate, and there is no length-controlled win rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from w2s_core.evaluation.metrics import Estimate

Values: TypeAlias = npt.NDArray[Any]
_PENALTY = 0.1
_RESAMPLES, _SEED = 500, 2404_04475  # each is a fit


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison with the baseline. `won`: 1, 0 or ½. `extra_length`: Δ, in characters."""

    won: float
    extra_length: int


def length_controlled_win_rate(
    groups: Sequence[Sequence[Comparison]], *, resamples: int = _RESAMPLES
) -> Estimate | None:
    """σ(θ) with its 95 % interval, by a bootstrap over the groups, each of which has the comparisons of one prompt.

    None where all length differences have one sign.
    """
    every = [comparison for group in groups for comparison in group]
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    won = np.array([comparison.won for comparison in every])
    extra = np.array([float(comparison.extra_length) for comparison in every])
    if extra.min() > 0 or extra.max() < 0:
        return None
    spread = extra.std() or np.inf  # all have the same length, which tells nothing of its effect
    design = np.stack([np.ones_like(extra), np.tanh(extra / spread)], axis=1)
    generator = np.random.default_rng(_SEED)
    resampled = [
        _rate(design, won, np.bincount(generator.integers(len(groups), size=len(groups)), minlength=len(groups))[owner])
        for _ in range(resamples)
    ]
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(_rate(design, won, np.ones_like(won)), float(low), float(high))


def _rate(design: Values, won: Values, weights: Values) -> float:
    """σ(θ) of the weighted fit. A tie counts as half a win and half a loss. Needs scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / _PENALTY, fit_intercept=False)
    outcomes = np.repeat([1, 0], len(won))
    model.fit(np.concatenate([design, design]), outcomes, np.concatenate([weights * won, weights * (1 - won)]))
    return float(model.predict_proba([[1.0, 0.0]])[0, 1])
