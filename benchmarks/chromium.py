"""Finds Chromium, which measures and tests the playground."""

from __future__ import annotations

import shutil

_NAMES = ("chromium", "chromium-browser", "google-chrome")  # Debian's, others', and Google's own
MISSING = "Chromium is not installed (apt-get install chromium)"


def find_chromium() -> str | None:
    """The path of the browser; None if it is not installed."""
    return next((path for path in map(shutil.which, _NAMES) if path is not None), None)
