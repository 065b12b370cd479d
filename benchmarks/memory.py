"""Memory of a process and its children, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

_KIB = 1024


def peak_bytes(pid: int) -> int:
    """Sum of the peaks of resident memory of `pid` and its living descendants; 0 where there is no /proc."""
    return sum(_peak(process) for process in _family(pid))


def _peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return sum(int(line.split()[1]) * _KIB for line in status.splitlines() if line.startswith("VmHWM:"))


def _family(pid: int) -> list[int]:
    children: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(child) for child in path.read_text(encoding="utf-8").split()]
    return [pid, *(member for child in children for member in _family(child))]
