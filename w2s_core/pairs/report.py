"""Says in words, as JSON and as a plot what the check of a pair has found."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from w2s_core.evaluation.metrics import Estimate
from w2s_core.pairs.check import ENOUGH, PairCheck

_SENTENCES = {
    "steers": "The pair steers: it ranks answers as people do, and not by their length alone.",
    "weak": "The pair is weak: it hardly ranks these answers better than chance. Steering by it will change little.",
    "likes length": "The pair only likes {kind} answers: at equal length it hardly knows the better one.",
    "exchanged": "Tuned and untuned are exchanged: the pair prefers the worse answers. Exchange them, or give the pair "
    "a negative weight.",
    "too few": "There are too few answers to tell whether the pair steers: it takes {enough} good ones and {enough} "
    "bad ones.",
    "equal": "The pair says nothing: its two models give every answer the same probability. Are they the same model?",
}


def summary(check: PairCheck) -> str:
    """The figures, the verdict in a sentence, and what follows for `guidance`."""
    lines = [f"{check.answers} answers" + (f", {check.too_long} more do not fit its context" if check.too_long else "")]
    if check.accuracy is not None and check.margin is not None:
        lines.append(f"the chosen answer scores higher   {_shown(check.accuracy)}")
        few = check.verdict == "too few"  # whose resampled interval would be too narrow
        lines.append(f"by so many nats                   {f'{check.margin.mean:.3f}' if few else _shown(check.margin)}")
    lines.append(f"AUC                               {_shown(check.auc)}")
    lines += [f"AUC of the first {n:3} words          {value:.3f}" for n, value in check.auc_by_words.items()]
    lines.append(f"correlation of score and length   {check.length_correlation:+.2f}")
    kind = "long" if check.length_correlation > 0 else "short"
    lines += ["", _SENTENCES[check.verdict].format(kind=kind, enough=ENOUGH)]
    if check.verdict in ("steers", "likes length") and check.length_penalty:
        lines.append(f"It tells more by the token: set guidance.length_penalty to {check.length_penalty:g}.")
    return "\n".join(lines)


def as_json(check: PairCheck) -> dict[str, Any]:
    """The figures for `json.dump`; intervals as {mean, low, high}, nats and probabilities."""
    content = asdict(check)
    content["accuracy"] = None if check.accuracy is None else check.accuracy.mean
    content["accuracy_interval"] = None if check.accuracy is None else [check.accuracy.low, check.accuracy.high]
    if check.margin is not None and check.verdict == "too few":
        content["margin"] = {"mean": check.margin.mean, "low": None, "high": None}
    content["auc"], content["auc_interval"] = check.auc.mean, [check.auc.low, check.auc.high]
    return content


def draw(check: PairCheck, path: Path) -> None:
    """Writes a PNG: the AUC by the number of words that the pair has read. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    points = [*check.auc_by_words.items(), ("all", check.auc.mean)]
    axes.plot(range(len(points)), [value for _, value in points], marker="o", color="#2f6fb0")
    last = len(points) - 1
    interval = [[check.auc.mean - check.auc.low], [check.auc.high - check.auc.mean]]
    axes.errorbar(last, check.auc.mean, yerr=interval, color="#2f6fb0", capsize=4)
    axes.axhline(0.5, color="#333333", linewidth=0.8)
    axes.set_xticks(range(len(points)), [str(name) for name, _ in points])
    axes.set_xlabel("words of the answer that the pair has read")
    axes.set_ylabel("AUC")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _shown(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
