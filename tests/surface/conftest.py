"""A real server process with tiny random models under the demo's names; its output is watched for errors."""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.replica import Replica, served
from tests.tiny import save_tiny

KEY = "key-of-the-surface-tests"
AUTHORIZED = {"authorization": f"Bearer {KEY}"}
CONTEXT = 128  # tokens, so that an answer without a limit ends soon
MOST_BYTES = 300_000  # of a body
TEMPLATE = (
    "{{ mood }}{% for tool in tools or [] %}{{ tool.function.name }} {{ tool.function.parameters.title }}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FAULTS = ("Traceback", "ERROR", "CRITICAL", "Exception")
GUIDANCE = {"method": "cbs", "pairs": {"positive": 1.0}, "beam_width": 2, "successors": 2, "chunk_length": 5}


def configuration(root: Path) -> Path:
    """The path of a configuration file."""
    folders = {"large": 0, "tuned": 1, "untuned": 2}
    for name, seed in folders.items():
        save_tiny(root / name, seed=seed, template=TEMPLATE, context_length=CONTEXT)
    settings = {
        "large_models": {"smollm2": {"model": str(root / "large"), "tool_format": "hermes"}},
        "pairs": {"positive": {"tuned": str(root / "tuned"), "untuned": str(root / "untuned"), "prompt_template": ""}},
        "served_models": {
            "smollm2": {"large": "smollm2"},
            "smollm2-positive": {"large": "smollm2", "guidance": GUIDANCE},
        },
        "server": {"api_keys": [KEY], "max_body_bytes": MOST_BYTES, "port": 0},
        "workers": {"devices": ["cpu"], "threads": 1, "dtype": "float32", "kv_cache_gb": 0.25},
    }
    path = root / "w2s.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    config = configuration(tmp_path_factory.mktemp("surface"))
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", "--config", str(config)]
    with served(command, {}, within=120) as replica:  # it imports torch, and its worker does
        yield replica


@pytest.fixture
def server(running: Replica) -> Iterator[str]:
    """The server's URL. After each test the server must be alive and must have logged no error."""
    yield running.url
    answer = httpx.post(
        f"{running.url}/v1/completions",
        json={"model": "smollm2", "prompt": "x", "max_tokens": 3},
        headers=AUTHORIZED,
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    lines = list(said(running))
    assert not any(word in line for line in lines for word in FAULTS), "".join(lines)


def said(running: Replica) -> Iterator[str]:
    """The lines that the server has written since the last call."""
    while True:
        try:
            line = running.lines.get_nowait()
        except queue.Empty:
            return
        assert line is not None, "the server has gone"
        yield line


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, headers=AUTHORIZED, timeout=60) as connected:
        yield connected
