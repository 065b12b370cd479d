"""The GPU report (`make gpu`): the GPU's tests, the time of a decode step and the speed of requests, as Markdown.

Tests, engine and vLLM have processes of their own, one after the other; then steps are timed in this one.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch

from benchmarks import gpu_steps
from benchmarks.figures import Spread, Trial, ratios, speeds
from benchmarks.machine import machine
from benchmarks.report import markdown, write
from benchmarks.settings import DEMO, Models, Settings, Workload, prepare
from benchmarks.systems import System, open_systems
from w2s_core.demo.models import PREFIX, SMOLLM2
from w2s_core.pool.specs import ModelSpec, WorkerSpec
from w2s_core.worker.cuda_graphs import Capture, CUDAGraphCapture
from w2s_core.worker.loading import load_models

_NO_GPU = 2  # exit code
_TESTS_TIMEOUT_S = 300
_CACHE_BYTES = 4 * 10**9
_WARM_UP_TOKENS = 10
_PROMPT = 20
_PLAIN = Workload(_PROMPT, 65, None)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured: rows and sessions of a step, requests at once, repeats, and tokens of an answer."""

    rows: Sequence[int] = (16, 64, 256)
    sessions: Sequence[int] = (1, 4, 16)
    streams: Sequence[int] = (1, 4, 16)
    repeats: int = 15
    tokens: int = 65


def report(settings: Settings, models: Sequence[str], sizes: Sizes, capture: Capture | None) -> Iterator[str]:
    """The sections of the report behind its head, one after the other. `capture`: see `gpu_steps.measure`."""
    for model in models:
        own = replace(settings, large=model)
        with tempfile.TemporaryDirectory(prefix="w2s-gpu-") as folder:
            prepared = prepare(own, Path(folder), equal=False)
            yield f"## {model}: tokens per second\n\n{asyncio.run(_speeds(own, prepared, sizes))}"
            yield f"## {model}: a decode step\n\n{_steps(own, prepared, sizes, capture)}"


async def _speeds(settings: Settings, models: Models, sizes: Sizes) -> str:
    """Guided 4/4/5 without and with CUDA graphs, and plain rows against vLLM's where that is at hand."""
    guided = [Workload(_PROMPT, sizes.tokens, DEMO, streams=streams) for streams in sizes.streams]
    plain = replace(_PLAIN, tokens=sizes.tokens)
    rows: list[Sequence[str]] = [("workload", "CUDA graphs", "tokens/s, median (min .. max)")]
    fastest: list[Trial] = []
    for graphs in (False, True):
        found = await _trials(replace(settings, cuda_graphs=graphs), models, "engine", [*guided, plain])
        names = [f"guided 4/4/5, {load.streams} at once" for load in guided] + ["16 plain rows, of one"]
        rows += [
            (name, "on" if graphs else "off", str(speeds(trials))) for name, trials in zip(names, found, strict=True)
        ]
        fastest = max(fastest, found[-1], key=lambda trials: speeds(trials).median if trials else 0.0)
    if settings.vllm is None:
        return f"{markdown(rows)}\n\nvLLM is not at hand."
    [vllm] = await _trials(settings, models, "vllm", [plain])
    ratio: Spread = ratios(fastest, vllm)
    return f"{markdown(rows)}\n\n16 plain rows ÷ vLLM's: {ratio} (vLLM: {speeds(vllm)} tokens/s)"


async def _trials(settings: Settings, models: Models, system: System, loads: Sequence[Workload]) -> list[list[Trial]]:
    """The trials of each workload, after one that warms up and captures what it meets."""
    async with open_systems(settings, models, {system}) as systems:
        found = []
        for load in loads:
            await systems.measure(system, load, seed=0)
            found.append([await systems.measure(system, load, seed) for seed in range(1, settings.repeats + 1)])
    return found


def _steps(settings: Settings, models: Models, sizes: Sizes, capture: Capture | None) -> str:
    specs = {"large": ModelSpec(models.large, trust_remote_code=False)}
    loaded = load_models(WorkerSpec(settings.device, settings.dtype, settings.threads, _CACHE_BYTES, specs))
    runner, _ = loaded["large"]
    return markdown([gpu_steps.HEAD, *gpu_steps.measure(runner, capture, sizes.rows, sizes.sessions, sizes.repeats)])


def head(device: str, dtype: str) -> str:
    """The device and the versions that the figures are from."""
    about = machine()
    gpu = torch.cuda.get_device_properties(device) if device.startswith("cuda") else None
    name = f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}" if gpu else about["processor"]
    return f"# GPU report\n\n{name}; {dtype}; " + ", ".join(f"{key} {value}" for key, value in about.items())


def run_tests() -> tuple[bool, str]:
    """Whether the tests in `tests/gpu` pass, and the end of what they print."""
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-rs", "tests/gpu"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TESTS_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return False, f"The tests took more than {_TESTS_TIMEOUT_S} seconds."
    return done.returncode == 0, "\n".join(done.stdout.splitlines()[-30:])


def _find_vllm() -> str | None:
    """The command in TEST_VLLM, or that of `make test-vllm`."""
    path = Path(os.environ.get("TEST_VLLM", ".venv-vllm/bin/vllm"))
    return str(path.absolute()) if path.exists() else None


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("gpu-report.md"), show_default=True)
@click.option("--model", "models", multiple=True, help="A folder or demo:NAME, beside the demo's model; repeatable.")
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--vllm", default=_find_vllm, help="Path of the command `vllm`.  [default: $TEST_VLLM or .venv-vllm's]")
def main(out: Path, models: tuple[str, ...], device: str, vllm: str | None) -> None:
    """Run the GPU's tests and measure its steps."""
    if not torch.cuda.is_available():
        click.echo(f"benchmarks.gpu: torch {torch.__version__} finds no CUDA device here", err=True)
        sys.exit(_NO_GPU)
    settings = Settings(dtype="bfloat16", device=device, vllm=vllm)
    passed, printed = run_tests()
    sections = [head(device, settings.dtype), f"## tests/gpu\n\n```\n{printed}\n```"]
    for section in report(settings, [PREFIX + SMOLLM2, *models], Sizes(), CUDAGraphCapture(torch.device(device))):
        sections.append(section)
        write(out, "\n\n".join(sections) + "\n")  # what there is so far
        click.echo(section + "\n")
    click.echo(f"wrote {out}", err=True)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
