"""`make deploy-local` with tiny models: two real replicas behind nginx, from start to clean exit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.deploy.conftest import answers, free_port
from tests.replica import SOON, eventually, status_of
from tests.tiny import save_tiny

ROOT = Path(__file__).parents[2]
LOADING = 120  # seconds: two processes import torch, on machines that do other things as well
CONFIG = """
large_models: {{tiny: {{model: "{large}"}}}}
pairs: {{nice: {{tuned: "{tuned}", untuned: "{untuned}"}}}}
served_models:
  tiny: {{large: tiny}}
  tiny-nice: {{large: tiny, guidance: {{pairs: {{nice: 1.0}}, beam_width: 2, successors: 2, chunk_length: 4}}}}
workers: {{devices: [cpu], dtype: float32}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folders = {name: save_tiny(tmp_path / name, seed=i) for i, name in enumerate(("large", "tuned", "untuned"))}
    path = tmp_path / "w2s.yaml"
    path.write_text(CONFIG.format(**folders))
    return path


def ports(count: int) -> int:
    """The first of `count` free ports in a row."""
    while True:
        first = free_port()
        if not any(answers(f"http://127.0.0.1:{first + i}") for i in range(count)):
            return first


def test_one_command_serves_and_one_signal_ends_it(nginx: str, config: Path) -> None:
    port = ports(3)
    command = [sys.executable, "-m", "deploy.local", "--port", str(port), "--config", str(config)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("W2S_")}
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            eventually(lambda: process.poll() is not None or answers(url), within=LOADING)
            assert process.poll() is None
            family = psutil.Process(process.pid).children(recursive=True)
            replicas = [f"http://127.0.0.1:{port + 1 + i}" for i in range(2)]
            assert [status_of(f"{replica}/ready") for replica in replicas] == [200, 200]
            body = {"model": "tiny-nice", "messages": [{"role": "user", "content": "x"}], "max_tokens": 12, "seed": 1}
            whole = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=SOON).json()
            streamed = httpx.post(f"{url}/v1/chat/completions", json=body | {"stream": True}, timeout=SOON).text
            chunks = [json.loads(line[6:]) for line in streamed.split("\n\n") if line.startswith("data: {")]
            text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
            assert text == whole["choices"][0]["message"]["content"]
            assert streamed.endswith("data: [DONE]\n\n")

            assert len([child for child in family if "w2s_core.worker.main" in " ".join(child.cmdline())]) == 2
            process.send_signal(signal.SIGTERM)
            assert process.wait(LOADING) == 0
        finally:
            process.terminate()
    assert not [child for child in family if child.is_running()], "nothing is left behind"


def test_without_nginx_it_says_what_to_install(tmp_path: Path) -> None:
    code = "import deploy.local; deploy.local.find_nginx = lambda: None; deploy.local.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "apt-get install nginx" in done.stderr
