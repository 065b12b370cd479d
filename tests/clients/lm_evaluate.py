"""Runs lm-eval over a folder of tasks: `lm_evaluate.py FOLDER MODEL ARGUMENTS`, the last as JSON; prints JSON.

It runs in lm-eval's own environment and imports nothing of this project.
"""

import json
import sys
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager


def main(folder: str, model: str, arguments: str) -> None:
    """Prints `{"metrics": {task: {metric: value}}, "answers": {task: [[answer of a request, ...], ...]}}`."""
    found = lm_eval.simple_evaluate(
        model=model,
        model_args=json.loads(arguments),
        tasks=sorted(path.stem for path in Path(folder).glob("*.yaml")),
        task_manager=TaskManager(include_path=folder, include_defaults=False),
        batch_size=8,
        bootstrap_iters=0,
        device="cpu",
    )
    assert found is not None
    metrics = {
        task: {name: value for name, value in told.items() if isinstance(value, float)}
        for task, told in found["results"].items()
    }
    answers = {
        task: [sample["resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
        for task, samples in found["samples"].items()
    }
    print(json.dumps({"metrics": metrics, "answers": answers}))


main(*sys.argv[1:])
