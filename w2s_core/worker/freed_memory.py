"""Freed memory: whether the C library keeps it for the next allocation or gives it back to the system.

These are settings of glibc. Other C libraries stay as they are.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # parameters of mallopt(3)
_MOST = 2**31 - 1


def return_freed_memory() -> None:
    """Gives what has been freed back to the system: 100 MB or more after models were loaded."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Keeps what is freed from now on, in this process, for allocations to come.

    A training on CPUs frees hundreds of MB in every step; fetching them again page by page took a fifth of it.
    """
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, _MOST)
