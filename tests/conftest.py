"""For every test: one thread, an order that keeps folders together, and no key in what this process logs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Two processes run the suite side by side on two cores, and models as small as these gain nothing by a second thread.
# Before torch is imported; workers have their own number, `workers.threads`.
os.environ.setdefault("OMP_NUM_THREADS", "1")

KEYS = ("sk-secret", "sk-very-secret-0123456789", "sk-scanned-for")  # that tests hand out for keys


class Listener(logging.Handler):
    """Keeps what shows a key, whoever logs it, as it would be written."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.shown: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if any(key in text for key in KEYS):
            self.shown.append(text)


@pytest.fixture(autouse=True)
def _no_key_is_logged() -> Iterator[Listener]:
    listener, root = Listener(), logging.getLogger()
    root.addHandler(listener)
    yield listener
    root.removeHandler(listener)
    assert not listener.shown


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts tests by folder, in the random order that folders have: those of a folder share engines, which start once
    in a process, and each of the processes that share the suite begins with a run of neighbours."""
    order: dict[Path, int] = {}
    for item in items:
        order.setdefault(item.path.parent, len(order))
    items.sort(key=lambda item: order[item.path.parent])
