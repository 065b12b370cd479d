"""Freed memory is kept where it was asked for, and only there."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from w2s_core.worker.freed_memory import keep_freed_memory
{first}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(8 << 20)  # 64 MB
before = faults()
for _ in range(4):
    np.ones(8 << 20)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_kept_memory_is_not_fetched_again() -> None:
    def faults(first: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", FAULTS.format(first=first)]))

    assert faults("keep_freed_memory()") * 20 < faults("")
