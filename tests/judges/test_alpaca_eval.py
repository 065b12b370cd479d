"""Answers as AlpacaEval's files: what is in them, and that the real package reads and ranks them.

The package has its own environment, made by `make test-clients`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.judges.answers import evaluation
from w2s_core.evaluation.records import EvalPrompt
from w2s_core.judges.alpaca_eval import folder_names, write_alpaca_eval

PROMPTS = [
    EvalPrompt("p", ("Say hello.",), group="helpful_base"),
    EvalPrompt("q", ("First?", "Second?")),
    EvalPrompt("r", ("A review: The plot",), chat=False, answer_prefix="The plot"),
]
ANSWERS = {
    "base": {("p", 0): "Hi.", ("p", 1): "Hi again.", ("q", 0): "Yes – é.", ("r", 0): " thickens."},
    "ours beam_width=2": {
        ("p", 0): "Hello there, friend.",
        ("q", 0): "No.",
        ("r", 0): " thickens, and then it thins again.",
    },
}


def outputs(path: Path) -> list[dict[str, str]]:
    content: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_a_file_has_the_first_seeds_answers(tmp_path: Path) -> None:
    base, ours = write_alpaca_eval(evaluation(tmp_path, ANSWERS, PROMPTS))
    assert base == tmp_path / "alpaca_eval/base/model_outputs.json"
    assert ours == tmp_path / "alpaca_eval/ours beam_width=2/model_outputs.json"
    assert outputs(base) == [
        {"dataset": "helpful_base", "instruction": "Say hello.", "output": "Hi.", "generator": "base"},
        {"dataset": "w2s", "instruction": "First?", "output": "Yes – é.", "generator": "base"},
        {
            "dataset": "w2s",
            "instruction": "A review: The plot",
            "output": "The plot thickens.",
            "generator": "base",
        },
    ]


def test_any_name_becomes_a_folder_of_its_own() -> None:
    names = ["plain", "a/b", "a:b", "../..", "..", "Größe 7"]
    assert folder_names(names) == {
        "plain": "plain",
        "a/b": "a_b",
        "a:b": "a_b (2)",
        "../..": "_",
        "..": "_ (2)",
        "Größe 7": "Größe 7",
    }


RANK = """
import json, sys
from alpaca_eval import evaluate
from alpaca_eval.annotators import base

def longer(prompts, **_):  # the annotator, in place of one that asks an LLM
    pairs = [prompt.split("|") for prompt in prompts]
    verdicts = ["1" if len(first) > len(second) else "2" for _, first, second in pairs]
    return {"completions": verdicts, "price_per_example": [0] * len(pairs), "time_per_example": [0] * len(pairs)}

base.get_fn_completions = lambda name: longer
reference, config, *models = sys.argv[1:]
found = []
for model in models:
    board, annotations = evaluate(
        model, reference, config, output_path=None, precomputed_leaderboard=None, is_return_instead_of_print=True,
        fn_metric="get_winrate", sort_by="win_rate", caching_path=None,
    )
    [(name, row)] = board.to_dict("index").items()
    found.append([name, row["win_rate"], row["n_total"], sorted(a["instruction"] for a in annotations)])
json.dump(found, sys.stdout)
"""
CONFIG = """
longer:
  prompt_template: longer/prompt.txt
  fn_completions: longer
  completions_kwargs: {}
  fn_completion_parser: regex_parser
  completion_parser_kwargs: {outputs_to_match: {1: "1", 2: "2"}}
  batch_size: 1
"""
TEMPLATE = "{instruction}|{output_1}|{output_2}"


@pytest.mark.clients
def test_alpaca_eval_reads_and_ranks_the_files(tmp_path: Path) -> None:
    base, ours = write_alpaca_eval(evaluation(tmp_path, ANSWERS, PROMPTS))
    config = tmp_path / "longer/configs.yaml"
    config.parent.mkdir()
    config.write_text(CONFIG, encoding="utf-8")
    config.with_name("prompt.txt").write_text(TEMPLATE, encoding="utf-8")
    done = subprocess.run(
        [os.environ["TEST_ALPACA_EVAL"], "-c", RANK, base, config, ours, base],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    instructions = sorted(prompt.turns[0] for prompt in PROMPTS)
    (name, win_rate, total, read), (reference, *_) = json.loads(done.stdout)
    assert (name, total, read) == ("ours beam_width=2", 3, instructions)
    assert win_rate == pytest.approx(200 / 3), "two of the three are longer"
    assert reference == "base"
