"""int8 on any CPU: its products are right everywhere, VNNI makes them fast.

Run as a module, it is a worker process whose CPU claims to have VNNI.
"""

from __future__ import annotations

import runpy

import pytest
import torch

from w2s_core.pool import process


def claim_vnni(patch: pytest.MonkeyPatch) -> None:
    """Makes this CPU claim to have VNNI, here and in the workers that are started."""
    patch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    patch.setattr(process, "WORKER_MODULE", __name__)


@pytest.fixture
def vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    claim_vnni(monkeypatch)


if __name__ == "__main__":
    torch.cpu._is_vnni_supported = lambda: True
    runpy.run_module(process.WORKER_MODULE, run_name="__main__", alter_sys=True)
