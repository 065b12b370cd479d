"""Settings are read without what the machine's own environment says of them."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("W2S_"):
            monkeypatch.delenv(name)
