"""Trains the demo pair by `w2s pair train`'s own code: `python -m w2s_core.recipes.demo_pair --out DIR`, ten minutes.

The base is a small model with random weights. A first training, on all the pair's sentences, makes a model of film
reviews of it. From there a second one trains tuned on the positive sentences and untuned on the negative ones.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from w2s_core.demo.convert import make_portable
from w2s_core.demo.data import Sentence, splits
from w2s_core.demo.models import WEIGHTS
from w2s_core.pairs.report import summary
from w2s_core.recipes.demo_base import write_base
from w2s_core.recipes.demo_card import write_card
from w2s_core.recipes.tutorial_data import write
from w2s_core.training.run import train_pair
from w2s_core.training.settings import TUNED, UNTUNED, TrainingSettings

VALIDATION = 1_000  # sentences of the pair's own split, held out to compare recipes
NAMES = {TUNED: "reviews-positive", UNTUNED: "reviews-negative"}
_CONTEXT = 2_048  # tokens
_PASSES = 3  # over all sentences, in the data; each joins others
_ALONE = 0.6  # share of the sentences that stand alone


def documents(sentences: Sequence[Sentence], seed: int = 0) -> list[dict[str, object]]:
    """Labelled texts that hold every sentence _PASSES times: most alone, some joined in twos and threes of one label.

    They are joined because answers have several sentences.
    """
    rng = random.Random(seed)
    records: list[dict[str, object]] = []
    for _ in range(_PASSES):
        for label in (True, False):
            texts = [sentence.text for sentence in sentences if sentence.positive == label]
            rng.shuffle(texts)
            while texts:
                count = 1 if rng.random() < _ALONE else rng.choice((2, 3))
                joined = [texts.pop() for _ in range(min(count, len(texts)))]
                records.append({"text": " ".join(joined), "label": label})
    return records


def trainings(training: Sequence[Sentence], testing: Sequence[Sentence], work: Path) -> tuple[TrainingSettings, ...]:
    """The two trainings, one after the other, with their data and their base in the folder `work`."""
    write_base(work / "base", [sentence.text for sentence in training])
    texts = documents(training)
    reviews = TrainingSettings(
        base=str(work / "base"),
        data=str(write(work / "reviews.jsonl", _without_labels(texts))),
        out=work / "reviews",
        epochs=2,
        learning_rate=2e-3,
        batch_size=20,
        embedding_dropout=0.15,
    )
    pair = TrainingSettings(
        base=str(work / "reviews" / TUNED),
        data=str(write(work / "labelled.jsonl", texts)),
        check_data=str(write(work / "test.jsonl", [{"text": s.text, "label": s.positive} for s in testing])),
        out=work / "pair",
        epochs=1,
        learning_rate=3e-4,
        batch_size=20,
        embedding_dropout=0.3,
        saved_dtype="float16",
    )
    return reviews, pair


def _without_labels(records: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    return [{"text": record["text"]} for record in records]


def train(training: Sequence[Sentence], testing: Sequence[Sentence], out: Path) -> None:
    """Trains the pair on `training`, checks it on `testing`, and writes its two folders and its card into `out`."""
    with tempfile.TemporaryDirectory(prefix="w2s-pair-") as scratch:
        work = Path(scratch)
        reviews, pair = trainings(training, testing, work)
        train_pair(reviews)
        check = train_pair(pair)
        assert check is not None, "the test sentences are labelled"
        for source, name in NAMES.items():
            shutil.rmtree(out / name, ignore_errors=True)
            shutil.copytree(pair.out / source, out / name)
            make_portable(out / name, context=_CONTEXT)
        write_card(out, reviews, pair, len(training), check)
        print(summary(check))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder to write (default: the package's weights)")
    parser.add_argument(
        "--validate", action="store_true", help="train without the validation sentences, and check the pair on those"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the result depends on the number of threads, through the order of float additions
    training, _, testing = splits()
    if arguments.validate:
        training, testing = training[VALIDATION:], training[:VALIDATION]
    train(training, testing, arguments.out)


if __name__ == "__main__":
    main()
