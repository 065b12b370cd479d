"""Devices of the workers: which workers there are, and those that a model names. A `+` joins devices of one worker."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from w2s_core.errors import ConfigurationError

_DEVICE = re.compile(r"(?P<kind>cpu|cuda|mps|xpu)(:\d+)?")


def worker_devices(
    configured: Literal["auto"] | Sequence[str], chosen: Mapping[str, Sequence[str] | None]
) -> list[str]:
    """The devices of every worker. `configured` is `workers.devices`; `chosen` what models name, by the key that does.

    Where `workers.devices` is "auto", devices that a model joins make one worker in place of those of each.

    Raises ConfigurationError, which names the key, for what is no device, for joined devices that do not go together,
    and for a device of a joined worker that is another one's, too.
    """
    for key, entries in [("workers.devices", () if configured == "auto" else configured), *chosen.items()]:
        for entry in entries or ():
            _check(key, entry)
    workers = _detected(chosen) if configured == "auto" else list(configured)
    shared = Counter(device for worker in workers for device in worker.split("+"))
    for worker in workers:
        for device in worker.split("+"):
            if "+" in worker and shared[device] > 1:
                key = _key_of(worker, chosen) if configured == "auto" else "workers.devices"
                raise ConfigurationError(f"{key}: `{worker}` joins {device}, which another worker has, too.")
    return workers


def check_choice(key: str, chosen: Sequence[str], workers: Sequence[str]) -> None:
    """Raises ConfigurationError, which names the key, unless `chosen` are devices of workers, and some of them."""
    if chosen and set(chosen) <= set(workers):
        return
    joined = "".join(f" To join devices, write `{each}` there." for each in chosen if "+" in each)
    raise ConfigurationError(f"{key}: must be some of workers.devices ({', '.join(workers)}).{joined}")


def _check(key: str, entry: str) -> None:
    """Raises ConfigurationError for an entry that is no device, and no devices that can be joined."""
    devices = entry.split("+")
    matches = [_DEVICE.fullmatch(device) for device in devices]
    for device, match in zip(devices, matches, strict=True):
        if match is None:
            raise ConfigurationError(f"{key}: `{device}` is no device. Write cpu, cuda:0, or cuda:0+cuda:1 and so on.")
    if len(devices) == 1:
        return
    if len({match["kind"] for match in matches if match}) > 1:
        raise ConfigurationError(f"{key}: `{entry}` joins devices of different kinds.")
    if len(set(devices)) < len(devices):
        raise ConfigurationError(f"{key}: `{entry}` names a device twice.")
    if any(":" not in device for device in devices):
        raise ConfigurationError(f"{key}: `{entry}` joins a device without its number, such as {devices[0]}:0.")


def _detected(chosen: Mapping[str, Sequence[str] | None]) -> list[str]:
    """The machine's devices, of which those that models join are one worker's."""
    found = detect_devices()
    joined: dict[str, str] = {}  # to the key that names it first
    for key, entries in chosen.items():
        for entry in entries or ():
            if "+" in entry:
                joined.setdefault(entry, key)
    for entry, key in joined.items():
        for device in entry.split("+"):
            if device not in found:
                raise ConfigurationError(f"{key}: there is no {device} here, only {', '.join(found)}.")
    taken = {device for entry in joined for device in entry.split("+")}
    return [*joined, *(device for device in found if device not in taken)]


def _key_of(worker: str, chosen: Mapping[str, Iterable[str] | None]) -> str:
    return next(key for key, entries in chosen.items() if worker in (entries or ()))


def detect_devices() -> list[str]:
    """All CUDA devices, or the CPU if there are none.

    A child process counts them, because this one must not import torch, and only if nvidia-smi is installed.
    """
    if shutil.which("nvidia-smi") is None:
        return ["cpu"]
    script = "import torch; print(torch.cuda.device_count())"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return [f"cuda:{i}" for i in range(int(result.stdout))] or ["cpu"]
