"""The work folder of a training, from which it goes on after a stop: `.training` within the output folder."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from w2s_core.errors import ConfigurationError
from w2s_core.evaluation.experiment import changed
from w2s_core.files.durable import replace_file
from w2s_core.training.settings import TrainingSettings

_WORK, _SETTINGS, _LOCK = ".training", "settings.json", "lock"
_FREE = ("out", "large", "saved_dtype")  # settings that may change in between: the trained models do not depend on them


@contextlib.contextmanager
def open_work_folder(settings: TrainingSettings, digest: str) -> Iterator[Path]:
    """Yields the work folder, new or of a training with these settings and data that was stopped.

    It is removed in the end, and after a ConfigurationError or Ctrl-C if nothing is trained yet; else it stays. Raises
    ConfigurationError where the output folder has other contents, or is in use.
    """
    out, work = settings.out, settings.out / _WORK
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.exists() and (not out.is_dir() or (found and _WORK not in found)):
        raise ConfigurationError(f"--out: {out} exists and is not empty; name another folder.")
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / _LOCK).acquire(timeout=0)
    except Timeout:
        raise ConfigurationError(f"--out: another training writes to {out}.") from None
    except OSError as error:
        raise ConfigurationError(f"--out: {out} cannot be written: {error.strerror or error}.") from None
    with lock:
        deciding = {name: value for name, value in asdict(settings).items() if name not in _FREE}
        _check_settings(work / _SETTINGS, {**deciding, "digest": digest}, out)
        try:
            yield work
        except (ConfigurationError, KeyboardInterrupt):
            if not any(work.glob("*/*")):  # files of a phase, or its checkpoints
                _remove(work, out)
            raise
        shutil.rmtree(work)


def _check_settings(path: Path, settings: Mapping[str, Any], out: Path) -> None:
    if not path.exists():
        replace_file(path, json.dumps(settings, indent=1))
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    different = [
        "the data" if name == "digest" else changed(f"`{name}`", before.get(name), value)
        for name, value in settings.items()
        if before.get(name) != value
    ]
    if different:
        raise ConfigurationError(
            f"--out: {out} holds a training that was stopped, which differs in {', '.join(different)}. Remove "
            f"{path.parent}, or name another folder."
        )


def _remove(work: Path, out: Path) -> None:
    shutil.rmtree(work)
    if not any(out.iterdir()):
        out.rmdir()
