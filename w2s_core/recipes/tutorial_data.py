"""Writes the tutorial's data, sentences of film reviews: `python -m w2s_core.recipes.tutorial_data --out DIR`.

`train.jsonl` has comparisons of a positive sentence with a negative one in TRL's preference format, `check.jsonl` has
others to check a pair with. `experiment.yaml` has `w2s eval run` continue the openers of reviews in `prompts.jsonl`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from w2s_core.demo.data import Sentence, splits
from w2s_core.demo.fetch import say
from w2s_core.evaluation.prompts import OPENERS, PREFIX

TRAIN, CHECK, PROMPTS, EXPERIMENT = "train.jsonl", "check.jsonl", "prompts.jsonl", "experiment.yaml"
_EXPERIMENT = """\
prompts: prompts.jsonl
sampling: {max_tokens: 40, temperature: 0.7, top_k: 50}
conditions:
  plain: {model: large}
  guided: {model: large-praise}
judges:
  positive: {python: "w2s_core.evaluation.judge:positive"}
"""


def comparisons(sentences: Sequence[Sentence], count: int) -> list[dict[str, str]]:
    """The first `count` positive sentences, each preferred to a negative one, as answers to one prompt."""
    good, bad = ([s.text for s in sentences if s.positive is wanted] for wanted in (True, False))
    return [
        {"prompt": PREFIX.rstrip(), "chosen": f" {chosen}", "rejected": f" {rejected}"}
        for chosen, rejected in zip(good[:count], bad[:count], strict=True)
    ]


def prompts(count: int) -> list[dict[str, str]]:
    """The first `count` evaluation openers; what judges read begins with the opener."""
    return [{"text": PREFIX + opener, "answer_prefix": opener} for opener in OPENERS[:count]]


def write(path: Path, records: Sequence[Mapping[str, object]]) -> Path:
    """Writes a JSON object to each line of `path`, and returns it."""
    path.write_text(_lines(records), encoding="utf-8")
    return path


def _lines(records: Sequence[Mapping[str, object]]) -> str:
    return "".join(f"{json.dumps(record)}\n" for record in records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--comparisons", type=int, default=1_000, help="comparisons to train on (default: %(default)s)")
    parser.add_argument("--checked", type=int, default=200, help="comparisons to check with (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=20, help="openers (default: %(default)s)")
    arguments = parser.parse_args()
    training, _, testing = splits()
    files = {
        TRAIN: _lines(comparisons(training, arguments.comparisons)),
        CHECK: _lines(comparisons(testing, arguments.checked)),
        PROMPTS: _lines(prompts(arguments.prompts)),
        EXPERIMENT: _EXPERIMENT,
    }
    for name, text in files.items():
        path = arguments.out / name
        if path.exists() and path.read_bytes() != text.encode():
            parser.error(f"--out: {path} exists, and is not what would be written. Remove it, or name another folder.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (arguments.out / name).write_text(text, encoding="utf-8")
    say(f"wrote {TRAIN}, {CHECK}, {PROMPTS} and {EXPERIMENT} to {arguments.out}")


if __name__ == "__main__":
    main()
