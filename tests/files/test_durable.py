"""Files that are whole, whenever their writer ends."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from w2s_core.files.durable import open_log, replace_file


def test_a_disk_that_is_full_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "settings.json"
    replace_file(path, "old")

    def write_half(self: Path, text: str, encoding: str) -> None:
        self.write_bytes(text[: len(text) // 2].encode(encoding))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, "new content")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"settings.json": b"old"}


def test_behind_a_link_what_it_names_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "file")
    replace_file(link, "wörld")
    assert link.is_symlink()
    assert [file.read_bytes() for file in (tmp_path / "there").iterdir()] == ["wörld".encode()]


def test_a_log_goes_on_behind_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    with open_log(path) as log:
        log.write(b"three\n")
    assert path.read_bytes() == b"one\nthree\n"


@pytest.mark.parametrize("last", [b'{"a": 2}', b'{"a": 2}\n'])
def test_a_last_line_that_is_whole_stays(tmp_path: Path, last: bytes) -> None:
    """An editor may have left out its end."""
    path = tmp_path / "log"
    path.write_bytes(b'{"a": 1}\n' + last)
    with open_log(path) as log:
        log.write(b"{}\n")
    assert path.read_bytes() == b'{"a": 1}\n{"a": 2}\n{}\n'


def test_permissions_and_neighbours_stay(tmp_path: Path) -> None:
    path, neighbour = tmp_path / "tree.svg", tmp_path / "tree.svg.new"
    path.write_text("old")
    path.chmod(0o600)
    neighbour.write_text("mine")
    replace_file(path, "new")
    assert path.stat().st_mode & 0o777 == 0o600
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"tree.svg": "new", "tree.svg.new": "mine"}
