"""The load sweep against a real server with tiny models; no memory use or latency is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load
from benchmarks.client import Stream
from benchmarks.memory import KVUsage
from benchmarks.processes import CpuUsage, peak_bytes
from benchmarks.settings import Settings, Workload
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("load")
    large, tuned, untuned = (
        str(save_tiny(root / name, seed=seed, pairs=name != "large"))
        for seed, name in enumerate(("large", "tuned", "untuned"))
    )
    return Settings(threads=1, large=large, tuned=tuned, untuned=untuned)


def test_the_sweep_from_server_to_charts(settings: Settings, tmp_path: Path) -> None:
    sweeps = load.run(settings, tmp_path, tokens=6, most=2, costs=False)
    assert [(level.load.streams, level.load.pair) for level in sweeps.concurrency] == [
        (1, "demo"),
        (2, "demo"),
        (1, None),
        (2, None),
    ]
    for level in sweeps.concurrency:
        assert level.tokens == level.load.tokens * level.load.streams, "every answer is whole"
        assert level.peak_bytes > 10**8, "a worker with torch in it"
    content = json.loads((tmp_path / "load.json").read_text(encoding="utf-8"))
    assert len(content["concurrency"]) == len(sweeps.concurrency)
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "load.md").read_text(encoding="utf-8").count("\n") == 2 + len(sweeps.concurrency)


def test_the_cost_of_a_request_from_server_to_chart(settings: Settings, tmp_path: Path) -> None:
    sweeps = load.run(settings, tmp_path, tokens=6, most=1, costs=True)
    for levels in (sweeps.concurrency, sweeps.length, sweeps.rows, sweeps.chunks):
        assert levels
        for level in levels:
            assert level.tokens == level.load.tokens * level.load.streams, "every answer is whole"
    for usage in sweeps.memory:
        assert usage.load.prompt < usage.peak_tokens <= 2 * usage.predicted, "a region doubles when it grows, no more"
    content = json.loads((tmp_path / "cost.json").read_text(encoding="utf-8"))
    assert [row["peak_tokens"] for row in content["memory"]] == [usage.peak_tokens for usage in sweeps.memory]
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "cost.md").read_text(encoding="utf-8").count("| rows |") == len(sweeps.rows)


def test_no_level_begins_when_time_is_over(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Workload] = []

    async def measure(_server: Any, _tokenizer: Any, workload: Workload, _seed: int) -> None:
        measured.append(workload)

    monkeypatch.setattr(load, "server_process", lambda _: nullcontext())
    monkeypatch.setattr(load, "measure", measure)
    sweeps = load.run(replace(settings, minutes=0.0), tmp_path, tokens=6, most=2, costs=False)
    assert not sweeps.concurrency
    assert len(measured) == 1, "the warm-up"
    assert (tmp_path / "load.png").exists()


def test_memory_is_the_prompt_once_the_beams_once_and_a_chunk_of_every_row() -> None:
    usage = KVUsage(Workload(20, 64, "demo", w=4, k=4, length=5), peak_tokens=0)
    assert usage.predicted == 20 + 4 * 59 + 16 * 5
    assert usage.published == 16 * 84


def test_the_sweep_doubles_up_to_the_most() -> None:
    assert [x.streams for x in load.concurrency(8, 32)] == [1, 2, 4, 8, 16, 32] * 2
    assert [x.rows for x in load.by_rows(8)] == [1, 4, 16, 32, 64]
    assert [x.tokens // x.length for x in load.by_chunks(32)] == [32, 16, 8, 4, 2, 1]


def test_gaps_lie_between_arrivals() -> None:
    assert Stream(3, 2.0, [0.5, 0.75, 1.75]).gaps == [0.25, 1.0]
    assert Stream(1, 2.0, [0.5]).gaps == []


def test_memory_counts_children() -> None:
    code = "import sys; block = bytearray(50_000_000); print(flush=True); sys.stdin.read()"
    before = peak_bytes(os.getpid())
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert peak_bytes(os.getpid()) - before > 45_000_000
        child.kill()


def test_what_others_take_is_what_we_do_not() -> None:
    cores = os.cpu_count() or 1
    before = CpuUsage(time=10.0, all=100.0, own=5.0)
    assert CpuUsage(14.0, 100.0 + 3 * cores, 5.0 + cores).foreign_since(before) == pytest.approx(0.5)
    assert CpuUsage(14.0, 101.0, 6.1).foreign_since(before) == 0, "clocks of different grain"
    now = CpuUsage.now()
    assert 0 < now.own < now.all
