"""The state file: whole or not at all, readable by all, and never written through a link."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from echod.errors import StartError
from echod.process import state

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """A document comes back as it was written, and the next one takes its place."""
    for document in ({"pid": 1, "workers": [{"slot": 1, "pid": 2}], "reload": None}, {"pid": 3}):
        state.write(tmp_path, document)

        assert document == state.read(tmp_path)
    assert [state.STATE_FILE] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
def test_everyone_may_read_it(tmp_path: Path, umask: int) -> None:
    """The mode is 0644, whatever the umask."""
    before = os.umask(umask)
    try:
        state.write(tmp_path, {})
    finally:
        os.umask(before)

    assert 0o644 == (tmp_path / state.STATE_FILE).stat().st_mode & 0o7777


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    """Links in the place of the file or of its draft leave their targets as they were."""
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / state.STATE_FILE).symlink_to(target)
    (tmp_path / f"{state.STATE_FILE}.new").symlink_to(target)
    state.write(tmp_path, {"pid": 1})

    assert "precious" == target.read_text()
    assert {"pid": 1} == state.read(tmp_path)
    assert not (tmp_path / state.STATE_FILE).is_symlink()


@pytest.mark.parametrize("content", [None, b"", b'{"pid":', b"\xff", b"[]"])
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    """A missing or broken file is a StartError that names it."""
    if content is not None:
        (tmp_path / state.STATE_FILE).write_bytes(content)

    with pytest.raises(StartError, match=f"{tmp_path}/{state.STATE_FILE}: "):
        state.read(tmp_path)


def test_what_cannot_be_written_whole_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the last document as it was, and no draft."""
    state.write(tmp_path, {"pid": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(OSError, match="No space left"):
        state.write(tmp_path, {"pid": 2})

    assert {"pid": 1} == state.read(tmp_path)
    assert [state.STATE_FILE] == [path.name for path in tmp_path.iterdir()]


def test_remove_is_content_when_there_is_none(tmp_path: Path) -> None:
    """Removing leaves no file, also when there was none."""
    state.write(tmp_path, {})
    state.remove(tmp_path)
    state.remove(tmp_path)

    assert [] == list(tmp_path.iterdir())
