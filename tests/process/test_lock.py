"""The lock: the kernel says who runs, the file only tells the pid."""

from __future__ import annotations

import fcntl
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from echod.errors import NotRunningError, StartError
from echod.process import lock
from echod.process.lock import Lock

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Lock]:
    """Hold the lock of the test's directory."""
    taken = Lock(tmp_path)
    yield taken
    taken.release()


@pytest.fixture
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all default places those of this test."""
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(lock, "_SYSTEM", tmp_path / "system")


# -- the lock ---------------------------------------------------------------------------------------------------------


def test_the_holder_is_whom_the_file_names(tmp_path: Path, held: Lock) -> None:
    """While the lock is held the pid in the file counts; the file is readable by all."""
    held.write_pid()

    assert os.getpid() == lock.holder(tmp_path)
    assert f"{os.getpid()}\n" == held.path.read_text()
    assert 0o644 == held.path.stat().st_mode & 0o7777


def test_release_removes_the_file(tmp_path: Path) -> None:
    """Whoever leaves takes the file along, and the next one may come, also where somebody has removed it already."""
    for remove_first in (False, True, False):
        held = Lock(tmp_path)
        if remove_first:
            held.path.unlink()
        held.release()

        assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"1\n", b"\0\xff" * 5000])
def test_what_an_unlocked_file_says_does_not_matter(tmp_path: Path, content: bytes) -> None:
    """Nobody holds a stale, empty or garbled file, and it can be locked."""
    (tmp_path / lock.PID_FILE).write_bytes(content)

    assert lock.holder(tmp_path) is None
    Lock(tmp_path).release()


def test_a_held_lock_is_refused(tmp_path: Path, held: Lock) -> None:
    """The second to come is told the pid of the first, whose file stays as it was."""
    held.write_pid()
    with pytest.raises(StartError, match=rf"^already running \(pid {os.getpid()}\)$"):
        Lock(tmp_path)

    assert f"{os.getpid()}\n" == held.path.read_text()


@pytest.mark.usefixtures("held")
def test_a_holder_without_a_pid_is_told_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock without a pid is waited for, since a start writes it last, but not for ever."""
    now = iter(range(10_000))
    monkeypatch.setattr(lock, "monotonic", lambda: next(now))
    monkeypatch.setattr(lock, "sleep", lambda _seconds: None)

    with pytest.raises(StartError, match="locked, but it holds no pid"):
        lock.holder(tmp_path)


def test_a_pid_that_comes_late_is_waited_for(tmp_path: Path, held: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at a daemon that is just starting gets the pid as soon as it is written."""
    monkeypatch.setattr(lock, "sleep", lambda _seconds: held.write_pid())

    assert os.getpid() == lock.holder(tmp_path)


def test_a_look_at_the_lock_does_not_hinder_a_start(tmp_path: Path) -> None:
    """A command holds the lock for an instant; a start tries again."""
    path = tmp_path / lock.PID_FILE
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    timer = threading.Timer(0.05, os.close, [fd])
    timer.start()
    Lock(tmp_path).release()
    timer.join()


def test_a_file_that_was_replaced_is_locked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock on a file that has just been removed is worth nothing: the file that the path names is locked."""
    real, path = fcntl.flock, tmp_path / lock.PID_FILE
    replaced: list[Path] = []

    def replace_first(fd: int, operation: int) -> None:
        if not replaced:
            replaced.append(path)
            path.unlink()
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", replace_first)
    held = Lock(tmp_path)

    assert os.path.samestat(os.fstat(held.fd), path.stat())
    held.release()


def test_links_and_pipes_are_refused(tmp_path: Path) -> None:
    """A link is not followed and a pipe not waited for; nobody holds either."""
    path = tmp_path / lock.PID_FILE
    path.symlink_to(tmp_path / "target")
    with pytest.raises(StartError, match="is a symbolic link, remove it"):
        Lock(tmp_path)
    assert lock.holder(tmp_path) is None
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StartError, match="not a regular file, remove it"):
        Lock(tmp_path)

    assert [path] == list(tmp_path.iterdir())


def test_a_lock_outlives_its_holder_only_with_a_copy(tmp_path: Path) -> None:
    """A killed process holds nothing: the lock is free although the file stays."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        Lock(tmp_path).write_pid()
        os.write(writer, b"x")
        threading.Event().wait()
    os.read(reader, 1)

    assert pid == lock.holder(tmp_path)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert lock.holder(tmp_path) is None
    Lock(tmp_path).release()
    os.close(reader)
    os.close(writer)


# -- the runtime directory --------------------------------------------------------------------------------------------


def test_a_configured_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    """The directory that the configuration names is made where it is missing, and kept where it is not."""
    wanted = tmp_path / "a" / "b"

    assert wanted == lock.prepare(str(wanted))
    assert wanted == lock.prepare(str(wanted))
    assert wanted.is_dir()


@pytest.mark.usefixtures("_nowhere")
def test_the_users_own_directory_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root the default lies in $XDG_RUNTIME_DIR and nobody else may look into it."""
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid or 54_321)
    monkeypatch.setattr(lock, "_own", lambda: tmp_path / "echod")
    if not tmp_path.stat().st_uid:
        monkeypatch.setattr(lock, "default_directory", lambda: tmp_path / "echod")

    assert tmp_path / "echod" == lock.prepare("")
    assert 0o700 == (tmp_path / "echod").stat().st_mode & 0o7777


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file", "not a directory"),
        ("file/below", "Not a directory"),
        ("link", "not a directory"),
        ("open", "others can write there; it must be your own"),
    ],
)
def test_an_unsafe_directory_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    """What is no directory, only leads to one, or may be written by others is not used."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)

    with pytest.raises(StartError, match=re.escape(f"runtime directory {tmp_path / name}: {reason}")):
        lock.prepare(str(tmp_path / name))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give away a directory")
def test_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In /tmp somebody else may have been faster: a directory of theirs is not used."""
    directory = tmp_path / "theirs"
    directory.mkdir()
    os.chown(directory, 54_321, 54_321)
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)

    with pytest.raises(StartError, match="it must be your own"):
        lock.prepare(str(directory))


def test_where_a_daemon_lives_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service manager's directory comes first, then root's, or the user's own: in /tmp without a session."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/first:/run/second")
    assert Path("/run/first") == lock.default_directory()
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert Path("/run/echod") == lock.default_directory()
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    assert Path("/run/user/1234/echod") == lock.default_directory()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert Path("/tmp/echod-1234") == lock.default_directory()


# -- finding a daemon -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_nowhere")
@pytest.mark.parametrize("place", ["given", "echod", "system"])
def test_all_default_places_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Without a configured directory a daemon is found in the manager's, the user's and the system's place."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "given"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    directory = tmp_path / place
    directory.mkdir()
    held = Lock(directory)
    held.write_pid()

    assert (directory, os.getpid()) == lock.find(None)
    held.release()


@pytest.mark.usefixtures("_nowhere")
def test_who_does_not_run_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a lock there is no daemon, and the places looked at are named; a user's own place is not root's."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(NotRunningError, match=re.escape(f"(no lock on {tmp_path}/system/echod.pid)")):
        lock.find(None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotRunningError, match=f"{tmp_path}/echod/echod.pid or {tmp_path}/system/echod.pid"):
        lock.find(None)
    with pytest.raises(NotRunningError, match=re.escape("(no lock on /nowhere/echod.pid)")):
        lock.find("/nowhere")


@pytest.mark.parametrize(("owner", "pid", "believed"), [(0, 1, 1), (65534, 1, None), (65534, 2**22 + 1, None)])
def test_a_pid_is_believed_of_who_owns_it(
    tmp_path: Path, held: Lock, owner: int, pid: int, believed: int | None
) -> None:
    """Somebody's directory may name somebody's process, and nobody else's: else it would have root signal any."""
    os.pwrite(held.fd, f"{pid}\n".encode(), 0)
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    os.chown(tmp_path, owner, owner)

    assert believed == lock.holder(tmp_path)


def test_what_another_daemon_has_made_is_left_alone(tmp_path: Path) -> None:
    """Whoever leaves after the file was cleaned away does not take that of the next daemon along."""
    first = Lock(tmp_path)
    first.path.unlink()
    second = Lock(tmp_path)
    assert (False, True) == (first.valid, second.valid)
    first.release()

    assert second.path.exists()
    second.release()


def test_a_file_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not being allowed to look is not the same as nobody being there."""

    def denied(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(StartError, match="Permission denied"):
        lock.holder(tmp_path)
