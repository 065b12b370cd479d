"""docs/tutorial.md, run as it is written: its pair passes the check and steers."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.test_documents import blocks
from tests.e2e.test_own_scorer import RUN
from tests.replica import ROOT, served

PAGE = "docs/tutorial.md"
TRAINING_S = 3600


def arguments(command: str) -> list[str]:
    """What the page's command is, with this Python and this checkout's `w2s`."""
    name, *rest = shlex.split(command.replace("\\\n", " "))
    return [sys.executable, *rest] if name == "python" else [sys.executable, "-c", RUN, ".", *rest]


def run(command: str, folder: Path, *more: str) -> str:
    """What the page's command prints on stdout, in `folder`, with all threads."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    found = subprocess.run(
        [*arguments(command), *more],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TRAINING_S,
    )
    return found.stdout


@pytest.mark.slow
def test_the_tutorial_as_it_is_written(tmp_path: Path) -> None:
    data, train, check, evaluate, serve, curl = blocks(PAGE, "sh")
    run(data, tmp_path)
    assert (tmp_path / "reviews/experiment.yaml").read_text(encoding="utf-8") == blocks(PAGE, "yaml")[0]
    assert "The pair steers" in run(train, tmp_path)
    assert json.loads(run(check, tmp_path, "--json"))["verdict"] == "steers"
    results = json.loads(run(evaluate, tmp_path, "--json"))
    [judge] = results["judgements"].values()
    assert judge["conditions"]["guided"]["difference"]["low"] > 0, "the judge's interval is apart from plain's"
    command = [sys.executable, "-c", RUN, str(tmp_path), *shlex.split(serve)[1:], "--port", "0"]
    with served(command, {"PYTHONPATH": str(ROOT)}, within=300) as server:
        parts = shlex.split(curl)
        body = json.loads(parts[parts.index("-d") + 1])
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=300).json()
    assert answer["model"] == "large-praise"
    assert answer["choices"][0]["text"]
