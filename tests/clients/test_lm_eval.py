"""lm-eval: `local-completions` against this server gives the same results as the `hf` backend with the same model.

The tasks are small and made here, without the hub. lm-eval has its own environment, made by `make test-clients`.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.replica import served
from w2s_core.demo.models import resolve

pytestmark = pytest.mark.clients

QUESTIONS = [  # question, choices, the right one
    ("What is the capital of France?", ["Paris", "Rome", "Madrid", "Oslo"], 0),
    ("How many legs has a spider?", ["six", "eight", "four"], 1),
    ("Which of these is a fruit?", ["a chair", "a banana", "a hammer"], 1),
    ("What do bees make?", ["honey", "wool", "steel", "paper and cardboard boxes"], 0),
    ("Was kostet der Kaffee im Café „Zürich“?", ["5 €", "fünf naïve Schlüssel", "☕☕"], 0),
    ("The sun rises in the", ["west", "east"], 1),
    ("Two and two make", ["three", "five", "four", "22"], 2),
    ("Water freezes at zero degrees", ["Fahrenheit", "Celsius"], 1),
]
PAGES = [
    "The quick brown fox jumps over the lazy dog. " * 5 + "Naïve café, 5 €; ☕.",
    "Once upon a time there was a small language model that could not tell a story.",
    "A search keeps the best of many hypotheses, chunk by chunk; a pair of small models scores them all. " * 8,
    "def add(a, b):\n    return a + b\n\n\nprint(add(2, 3))\n",
]
QUESTION: dict[str, Any] = {"doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_target": "{{answer}}"}
TASKS: dict[str, dict[str, Any]] = {
    "choice": QUESTION
    | {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "num_fewshot": 2,
        "fewshot_split": "test",
        "fewshot_config": {"sampler": "first_n"},
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": [{"metric": f"{of}_perplexity"} for of in ("word", "byte")] + [{"metric": "bits_per_byte"}],
    },
    "writing": QUESTION
    | {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n\n", "Question"], "max_gen_toks": 16, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}
WINDOW = 96  # tokens: some pages take several
LARGE = "demo:smollm2-135m-instruct"


@dataclass(frozen=True)
class Found:
    metrics: dict[str, dict[str, float]]
    answers: dict[str, list[Any]]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    questions = [{"question": q, "choices": choices, "answer": right} for q, choices, right in QUESTIONS]
    (folder / "questions.json").write_text(json.dumps(questions))
    (folder / "pages.json").write_text(json.dumps([{"page": page} for page in PAGES]))
    for name, task in TASKS.items():
        data = folder / ("pages.json" if name == "perplexity" else "questions.json")
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (folder / f"w2s_{name}.yaml").write_text(yaml.safe_dump({"task": f"w2s_{name}", **source, **task}))
    return folder


def evaluate(tasks: Path, backend: str, **arguments: Any) -> Found:
    python = os.environ.get("TEST_LM_EVAL")
    if not python:
        pytest.skip("TEST_LM_EVAL does not name a Python that has lm-eval; `make test-clients` makes and names it")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tasks / "cache")}
    program = str(Path(__file__).parent / "lm_evaluate.py")
    command = [python, program, str(tasks), backend, json.dumps(arguments)]
    ran = subprocess.run(command, cwd=tasks, env=os.environ | offline, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return Found(**json.loads(ran.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def by_transformers(tasks: Path) -> Found:
    """The hf backend with a softmax in double precision, as single was off by 1.4e-3 nats on a page of 177 tokens."""
    large = str(resolve(LARGE))
    return evaluate(tasks, "hf", pretrained=large, dtype="float32", softmax_dtype="float64", max_length=WINDOW)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", "--port", "0"]
    with served(command, {"W2S_WORKERS__DTYPE": "float32"}) as running:
        yield running.url


@pytest.fixture(scope="module")
def by_the_server(tasks: Path, server: str) -> Found:
    return evaluate(
        tasks,
        "local-completions",
        model="smollm2",
        base_url=f"{server}/v1/completions",
        tokenizer=str(resolve(LARGE)),
        tokenizer_backend="huggingface",
        num_concurrent=4,
        max_length=WINDOW + 2,  # of which this backend keeps two for itself where it rolls
    )


def test_the_metrics_are_the_same(by_transformers: Found, by_the_server: Found) -> None:
    print("hf:               ", by_transformers.metrics)
    print("local-completions:", by_the_server.metrics)
    assert set(by_the_server.metrics) == {f"w2s_{name}" for name in TASKS}
    for task, metrics in by_transformers.metrics.items():
        assert by_the_server.metrics[task] == pytest.approx(metrics, rel=1e-4)
    assert set(by_transformers.metrics["w2s_choice"]) == {"acc,none", "acc_norm,none"}
    assert by_transformers.metrics["w2s_choice"]["acc,none"] > 0.3


@pytest.mark.parametrize("task", ["w2s_choice", "w2s_perplexity"])
def test_every_log_probability_is_the_same(by_transformers: Found, by_the_server: Found, task: str) -> None:
    """Log-likelihoods of whole continuations and pages agree to 1e-3 nats, and so does whether they are greedy."""
    expected, found = _answers(by_transformers, task), _answers(by_the_server, task)
    assert len(found) >= len(PAGES)
    print(task, "largest difference:", max(abs(a[0] - b[0]) for a, b in zip(found, expected, strict=True)), "nats")
    for (nats, *greedy), (other, *greedy_too) in zip(found, expected, strict=True):
        assert math.isfinite(nats)
        assert nats == pytest.approx(other, abs=1e-3)
        assert greedy == greedy_too


def test_greedy_answers_are_the_same(by_transformers: Found, by_the_server: Found) -> None:
    assert by_the_server.answers["w2s_writing"] == by_transformers.answers["w2s_writing"]
    assert any(text.strip() for answers in by_the_server.answers["w2s_writing"] for [text] in answers)


def _answers(found: Found, task: str) -> list[list[Any]]:
    """One list per request: nats, and for continuations whether they are greedy."""
    flat = [answer for doc in found.answers[task] for request in doc for answer in request]
    return [answer if isinstance(answer, list) else [answer] for answer in flat]
