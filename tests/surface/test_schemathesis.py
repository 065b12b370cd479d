"""schemathesis over the server's own `/openapi.json`, with all of its checks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.surface.conftest import AUTHORIZED
from tests.tiny import VOCABULARY

# A description cannot say all that a request must be: that a token is one of the vocabulary's, that a prompt fits the
# context, that no field contradicts another, that a float such as 3.0 is no integer (we are strict). So bodies that
# the description lets pass may be refused, in the promised shape; whatever else is valid must be answered.
CONFIGURATION = """
[checks.positive_data_acceptance]
enabled = true
expected-statuses = ["2xx", "404"]

[[operations]]
include-method = "POST"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404"]
"""
SECONDS = 600  # a hang is a failure


def description(url: str) -> dict[str, Any]:
    """The server's schema, narrowed to the served models and the vocabulary, so that not every request is refused."""
    schema: dict[str, Any] = httpx.get(f"{url}/openapi.json").json()
    bodies = schema["components"]["schemas"]
    for body in ("CompletionBody", "ChatBody"):
        bodies[body]["properties"]["model"]["enum"] = ["smollm2", "smollm2-positive"]
    bodies["DetokenizeBody"]["properties"]["tokens"]["items"]["maximum"] = VOCABULARY - 1
    return schema


def explore(url: str, folder: Path, *options: str) -> str:
    """Runs schemathesis and returns its output; fails if it found a problem."""
    (folder / "openapi.json").write_text(json.dumps(description(url)))
    (folder / "schemathesis.toml").write_text(CONFIGURATION)
    told = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "st"), "run", "openapi.json", "--url", url),
            *("--header", f"Authorization: {AUTHORIZED['authorization']}", "--checks", "all"),
            *("--no-color", "--continue-on-failure", "--no-shrink", *options),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


def test_every_answer_is_as_described(server: str, tmp_path: Path) -> None:
    told = explore(server, tmp_path, "--phases", "examples,coverage,fuzzing", "--max-examples", "5", "--seed", "1")
    assert "Tested: 12" in told


@pytest.mark.slow
def test_thousands_of_answers_are_as_described(server: str, tmp_path: Path) -> None:
    explore(server, tmp_path, "--phases", "examples,coverage,fuzzing", "--max-examples", "500")
