"""CPU time and memory of this process tree, and CPU time of other processes, from Linux' /proc."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_KIB = 1024
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_IDLE, _IOWAIT = 3, 4  # columns of /proc/stat


@dataclass(frozen=True, slots=True)
class CpuUsage:
    """CPU seconds until now: of all processes, and of this one with its living descendants."""

    time: float
    all: float
    own: float

    @classmethod
    def now(cls) -> Self:
        return cls(time.perf_counter(), _busy(), sum(_cpu_seconds(pid) for pid in family(os.getpid())))

    def foreign_since(self, before: CpuUsage) -> float:
        """The share of the machine's CPU time that other processes used since `before`, between 0 and 1."""
        capacity = (self.time - before.time) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, (self.all - before.all - self.own + before.own) / capacity))


async def wait_until_idle(share: float, *, poll_s: float = 1.0, timeout_s: float = 20.0) -> None:
    """Waits until other processes use no more than `share` of the machine, for at most `timeout_s` seconds."""
    start = CpuUsage.now()
    before = start
    while before.time - start.time < timeout_s:
        await asyncio.sleep(poll_s)
        now = CpuUsage.now()
        if now.foreign_since(before) <= share:
            return
        before = now


def peak_bytes(pid: int) -> int:
    """The sum of the peak resident memory of `pid` and its living descendants; 0 if there is no /proc."""
    return sum(_peak(process) for process in family(pid))


def family(pid: int) -> list[int]:
    """`pid` and its living descendants."""
    children: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(child) for child in _read(path).split()]
    return [pid, *(member for child in children for member in family(child))]


def _peak(pid: int) -> int:
    lines = _read(Path(f"/proc/{pid}/status")).splitlines()
    return sum(int(line.split()[1]) * _KIB for line in lines if line.startswith("VmHWM:"))


def _cpu_seconds(pid: int) -> float:
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:13]) * _TICK_S


def _busy() -> float:
    ticks = [int(word) for word in _read(Path("/proc/stat")).partition("\n")[0].split()[1:9]]
    return (sum(ticks) - sum(ticks[_IDLE : _IOWAIT + 1])) * _TICK_S


def _read(path: Path) -> str:
    """The content of a /proc file, or an empty string if the process has ended."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
