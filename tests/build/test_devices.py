"""The workers' devices: what may be joined, what a model may name, and errors that name the key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest

from w2s_core.build import devices
from w2s_core.build.devices import check_choice, worker_devices
from w2s_core.build.local import _worker_specs
from w2s_core.config import WorkersConfig
from w2s_core.errors import ConfigurationError

BIG, PAIR = "large_models.big.devices", "pairs.p.devices"


@pytest.fixture(autouse=True)
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "detect_devices", lambda: [f"cuda:{i}" for i in range(4)])


@pytest.mark.parametrize(
    ("configured", "chosen", "workers"),
    [
        (["cpu"], {}, ["cpu"]),
        (["cpu", "cpu"], {}, ["cpu", "cpu"]),
        ("auto", {BIG: None}, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("auto", {BIG: ["cuda:1"]}, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("auto", {BIG: ["cuda:0+cuda:1"], PAIR: None}, ["cuda:0+cuda:1", "cuda:2", "cuda:3"]),
        ("auto", {BIG: ["cuda:3+cuda:1"], PAIR: ["cuda:3+cuda:1"]}, ["cuda:3+cuda:1", "cuda:0", "cuda:2"]),
        ("auto", {BIG: ["cuda:0+cuda:1", "cuda:2+cuda:3"]}, ["cuda:0+cuda:1", "cuda:2+cuda:3"]),
        (["cuda:0+cuda:1", "cuda:2"], {BIG: ["cuda:0+cuda:1"]}, ["cuda:0+cuda:1", "cuda:2"]),
        (["cpu:0+cpu:1"], {}, ["cpu:0+cpu:1"]),
    ],
)
def test_the_workers(
    configured: Literal["auto"] | Sequence[str], chosen: dict[str, Sequence[str] | None], workers: list[str]
) -> None:
    assert worker_devices(configured, chosen) == workers


@pytest.mark.parametrize(
    ("configured", "chosen", "message"),
    [
        (["gpu"], {}, "workers.devices: `gpu` is no device"),
        (["cuda:0+"], {}, "workers.devices: `` is no device"),
        (["cuda:x"], {}, "workers.devices: `cuda:x` is no device"),
        (["cpu"], {PAIR: ["cuda:0+gpu"]}, "pairs.p.devices: `gpu` is no device"),
        (["cuda:0+cuda:0"], {}, "workers.devices: `cuda:0+cuda:0` names a device twice"),
        (
            "auto",
            {BIG: ["cuda:1+cuda:0+cuda:1"]},
            "large_models.big.devices: `cuda:1+cuda:0+cuda:1` names a device twi",
        ),
        ("auto", {BIG: ["cuda:0+cpu:0"]}, "large_models.big.devices: `cuda:0+cpu:0` joins devices of different kinds"),
        (["cuda+cuda:1"], {}, "workers.devices: `cuda+cuda:1` joins a device without its number, such as cuda:0"),
        (["cuda:0+cuda:1", "cuda:1"], {}, "workers.devices: `cuda:0+cuda:1` joins cuda:1, which another worker has"),
        (
            "auto",
            {BIG: ["cuda:0+cuda:1"], PAIR: ["cuda:1+cuda:2"]},
            "large_models.big.devices: `cuda:0+cuda:1` joins cuda:1, which another worker has",
        ),
        ("auto", {BIG: ["cuda:3+cuda:4"]}, "large_models.big.devices: there is no cuda:4 here, only cuda:0, cuda:1"),
    ],
)
def test_mistakes_are_named(
    configured: Literal["auto"] | Sequence[str], chosen: dict[str, Sequence[str] | None], message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        worker_devices(configured, chosen)
    assert str(caught.value).startswith(message)


def test_a_model_names_workers_devices() -> None:
    check_choice(BIG, ["cuda:0+cuda:1"], ["cuda:0+cuda:1", "cuda:2"])
    with pytest.raises(
        ConfigurationError, match=r"^large_models\.big\.devices: must be some of workers\.devices \(cpu"
    ):
        check_choice(BIG, [], ["cpu"])
    with pytest.raises(ConfigurationError, match=r"To join devices, write `cuda:0\+cuda:1` there\.$"):
        check_choice(BIG, ["cuda:0+cuda:1"], ["cuda:0", "cuda:1"])


@pytest.mark.parametrize("graphs", [False, True])
def test_workers_are_told_whether_to_capture_graphs(graphs: bool) -> None:
    specs = _worker_specs(WorkersConfig(cuda_graphs=graphs), ["cuda:0", "cuda:1"], {})
    assert [spec.cuda_graphs for spec in specs] == [graphs] * 2
