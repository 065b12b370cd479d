"""The review sentences, which need the package registry the first time on a machine."""

from __future__ import annotations

import pytest

from w2s_core.demo.data import Split, splits


@pytest.fixture(scope="session")
def three_splits() -> tuple[Split, Split, Split]:
    return splits()
