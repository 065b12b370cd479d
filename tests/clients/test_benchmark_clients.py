"""Benchmark clients: `vllm bench serve` and guidellm run against the demo, plain and guided, on both endpoints.

Each lives in an environment of its own: `make test-vllm` and `make test-clients` make them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.replica import served
from w2s_core.demo.models import resolve

LARGE = "demo:smollm2-135m-instruct"
REQUESTS, PROMPT, ANSWER = 4, 32, 12  # requests, two at once, and tokens of each
MODELS = pytest.mark.parametrize("model", ["smollm2", "smollm2-positive"])
ENDPOINTS = pytest.mark.parametrize("endpoint", ["/v1/completions", "/v1/chat/completions"])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", "--port", "0"]
    with served(command, {}) as running:
        yield running.url


def program(variable: str, target: str) -> str:
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} names no program; `make {target}` installs and names it")
    return str(Path(path).absolute())


def run(folder: Path, *command: str) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    ran = subprocess.run(command, cwd=folder, env=os.environ | offline, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.vllm
@MODELS
@ENDPOINTS
def test_vllm_bench_serve(server: str, tmp_path: Path, model: str, endpoint: str) -> None:
    vllm = program("TEST_VLLM", "test-vllm")
    chat = "chat" in endpoint
    run(
        tmp_path,
        *(vllm, "bench", "serve", "--backend", "openai-chat" if chat else "openai", "--base-url", server),
        *("--endpoint", endpoint, "--model", model, "--tokenizer", str(resolve(LARGE)), "--dataset-name", "random"),
        *("--random-input-len", str(PROMPT), "--random-output-len", str(ANSWER), "--ignore-eos"),
        *("--num-prompts", str(REQUESTS), "--max-concurrency", "2", "--save-result", "--result-filename", "found.json"),
    )
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    assert (found["completed"], found.get("failed", 0)) == (REQUESTS, 0)
    assert found["total_output_tokens"] == REQUESTS * ANSWER
    print(f"{model} {endpoint}: {found['output_throughput']:.1f} tokens/s, TTFT {found['median_ttft_ms']:.0f} ms")


@pytest.mark.clients
@MODELS
@ENDPOINTS
def test_guidellm(server: str, tmp_path: Path, model: str, endpoint: str) -> None:
    guidellm = program("TEST_GUIDELLM", "test-clients")
    run(
        tmp_path,
        *(guidellm, "run", "--backend", f"kind=openai_http,target={server},model={model},request_format={endpoint}"),
        *("--profile", "kind=concurrent,streams=2", "--constraint", f"kind=max_requests,count={REQUESTS}"),
        *("--tokenizer", f"kind=hf_auto,model={resolve(LARGE)}", "--disable-console"),
        *("--data", f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={ANSWER}"),
        *("--output", "kind=json,path=found.json"),
    )
    [found] = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    totals = found["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"], totals["incomplete"]) == (REQUESTS, 0, 0)
    answers = found["metrics"]["output_token_count"]["successful"]
    assert (answers["min"], answers["max"]) == (ANSWER, ANSWER)
    print(f"{model} {endpoint}: {found['metrics']['output_tokens_per_second']['successful']['mean']:.1f} tokens/s")
