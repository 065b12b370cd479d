"""For every test: whatever it logs in this process, no key is in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

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
