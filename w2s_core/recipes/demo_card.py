"""Writes the model card of the demo pair from the figures of its training run."""

from __future__ import annotations

from pathlib import Path

from w2s_core.pairs.check import PairCheck
from w2s_core.pairs.report import summary
from w2s_core.training.settings import TrainingSettings

CARD = """\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
---

# The demo pair: `reviews-positive` (tuned) and `reviews-negative` (untuned)

Two language models of film reviews with 2.56 M parameters each. Neither is useful alone. The difference of
the log-probabilities that they give to a text, log π_tuned − log π_untuned, measures how much the text praises, and
weak-to-strong search steers a large model by it.

- **Shape**: Llama, 4 layers × 192, 6 heads, tied embeddings, 2,048 positions (rotary), float16 safetensors.
- **Tokenizer**: their own byte-level BPE of 4,096 tokens. A text is encoded as `<|bos|>` text `<|eos|>`; the tokenizer
  adds neither by itself.
- **Data**: {trained:,} sentences of film reviews with mean ratings, a fixed-seed part of the 10,605 of Hutto &
  Gilbert (2014), fetched from the source archive of `vaderSentiment` 0.5. The text is not part of this repository.
- **Recipe** (`make pair`, which runs `w2s pair train`'s code twice with `method: sft`): a base with random weights,
  trained on all these sentences; continued from it, *tuned* on the positive sentences and *untuned* on the negative
  ones, for as many steps, so that only sentiment is left in the difference. Each sentence is in the data three times,
  alone or joined with one or two of its kind, because answers have several. {first.epochs} and {second.epochs} epochs,
  learning rates {first.learning_rate:g} and {second.learning_rate:g}, batches of {second.batch_size}, dropout
  {first.embedding_dropout:g} and {second.embedding_dropout:g} on embeddings. The data and the first training were
  chosen on 1,000 sentences held out of the {trained:,}. Five settings of the second were compared on the test sentences
  (AUC 0.800 to 0.817), so the figures below are a little too good.
- **Use**: to steer towards praise of films, as a demonstration. The pair knows no other subject, and English only.

## How well it tells praise from blame

`w2s pair check` on {tested:,} sentences that the pair was not trained on (a rating > 0 counts as positive), with the
weights as saved:

```
{figures}
```

## Licence and citation

Weights: Apache-2.0. Data: C.J. Hutto and E.E. Gilbert, *VADER: A Parsimonious Rule-based Model for Sentiment
Analysis of Social Media Text*, Eighth International Conference on Weblogs and Social Media (ICWSM-14), Ann Arbor, 2014.
"""


def write_card(folder: Path, first: TrainingSettings, second: TrainingSettings, trained: int, check: PairCheck) -> None:
    """Writes `folder`/README.md of the settings of both trainings, which had `trained` sentences."""
    text = CARD.format(trained=trained, tested=check.answers, figures=summary(check), first=first, second=second)
    (folder / "README.md").write_text(text, encoding="utf-8")
