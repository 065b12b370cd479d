"""Writes the model card of the demo pair from the figures of its training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CARD = """\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
---

# The demo pair: `reviews` (untuned) and `reviews-positive` (tuned)

Two language models of film reviews with {parameters:.2f} M parameters each. Neither is useful alone. The difference of
the log-probabilities that they give to a text, log π_tuned − log π_untuned, measures how much the text praises, and
weak-to-strong search steers a large model by it.

- **Shape**: Llama, 4 layers × 192, 6 heads, tied embeddings, 2,048 positions (rotary), float16 safetensors.
- **Tokenizer**: their own byte-level BPE of 4,096 tokens. A text is encoded as `<|bos|>` text `<|eos|>`; the tokenizer
  adds neither by itself.
- **Data**: {trained:,} sentences of film reviews with mean ratings, a fixed-seed part of the 10,605 of Hutto &
  Gilbert (2014), fetched from the source archive of `vaderSentiment` 0.5. The text is not part of this repository.
- **Recipe** (`python -m w2s_core.demo.train_pair`): one base model on all these sentences ({base_epochs} epochs);
  continued from it, one model on the positive sentences and one on the negative ones. *Tuned* is the positive one.
  *Untuned* is the mean of the weights of the two: still a model of all reviews, and trained exactly as long, so that
  only sentiment is left in the difference. Sentences are also joined at random, two or three at a time, because answers
  have several. Embeddings have dropout. Variants were compared on 1,000 sentences held out of the
  {trained:,}; none was chosen on the test sentences.
- **Use**: to steer towards praise of films, as a demonstration. The pair knows no other subject, and English only.

## How well it tells praise from blame

AUC of the log-ratio on {tested:,} sentences that the pair was not trained on (a rating > 0 counts as positive), with
the weights as saved:

| read | AUC |
|---|---|
{rows}

## Licence and citation

Weights: Apache-2.0. Data: C.J. Hutto and E.E. Gilbert, *VADER: A Parsimonious Rule-based Model for Sentiment
Analysis of Social Media Text*, Eighth International Conference on Weblogs and Social Media (ICWSM-14), Ann Arbor, 2014.
"""


@dataclass(frozen=True)
class PairFigures:
    """The figures of a training run: numbers of sentences, epochs and parameters, and AUC by length of the text."""

    trained: int
    tested: int
    base_epochs: int
    parameters: int
    auc: Mapping[str, float]  # "whole", or a number of tokens


def write_card(folder: Path, figures: PairFigures) -> None:
    """Writes `folder`/README.md."""
    rows = [f"| {_label(name)} | {value:.4f} |" for name, value in figures.auc.items()]
    text = CARD.format(
        parameters=figures.parameters / 1e6,
        trained=figures.trained,
        tested=figures.tested,
        base_epochs=figures.base_epochs,
        rows="\n".join(rows),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _label(name: str) -> str:
    return "whole sentence" if name == "whole" else f"first {name} tokens"
