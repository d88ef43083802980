"""The runtime directory: its place, its lock, its three files, and what happens when other programs remove them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from echod.errors import StartError
from echod.process import control_endpoint, runtime_directory
from echod.process.control_endpoint import LOCK_FILE, SOCKET_FILE
from echod.process.runtime_directory import PID_FILE, RuntimeDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Directory(RuntimeDirectory):
    """A directory whose sockets are closed with it; a daemon's control socket has another owner."""

    def publish(self) -> None:
        """Keep the first socket too."""
        super().publish()
        self.sockets = [self.socket]

    def restore(self) -> list[str]:
        """Keep each new socket."""
        try:
            return super().restore()
        finally:
            self.sockets.append(self.socket)

    def release(self) -> None:
        """Close the sockets."""
        for sock in getattr(self, "sockets", ()):
            sock.close()
        super().release()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], Directory]]:
    """Make directories at the same path that are released at the end, the newest first."""
    made: list[Directory] = []

    def one() -> Directory:
        made.append(Directory(tmp_path / "run", 0o755))
        return made[-1]

    yield one
    for directory in reversed(made):
        directory.release()


@pytest.fixture
def held(make: Callable[[], Directory]) -> Directory:
    """Return a directory that is published."""
    directory = make()
    directory.publish()
    return directory


@pytest.fixture
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all default places those of this test."""
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(control_endpoint, "_SYSTEM_DIRECTORY", tmp_path / "system")


def names(directory: Directory) -> list[str]:
    """Return the names of the files that are there."""
    return sorted(path.name for path in directory.path.iterdir())


def connects(path: Path) -> bool:
    """Tell whether a client can connect."""
    connection = control_endpoint.connect(path)
    if connection:
        connection.close()
    return connection is not None


# -- the three files --------------------------------------------------------------------------------------------------


def test_publish_makes_socket_and_pid_file(held: Directory) -> None:
    """Lock and socket are for the owner alone, the pid is for all; no draft stays."""
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in held.path.iterdir()}

    assert {LOCK_FILE: 0o600, SOCKET_FILE: 0o600, PID_FILE: 0o644} == modes
    assert f"{os.getpid()}\n" == (held.path / PID_FILE).read_text()
    assert connects(held.path)


def test_publish_replaces_files_of_killed_daemon(make: Callable[[], Directory], tmp_path: Path) -> None:
    """Whatever lies there under the three names and their drafts, the files of the lock's owner take its place."""
    directory = make()
    target = tmp_path / "target"
    target.write_text("precious")
    for name in (PID_FILE, f"{PID_FILE}.new", f"{SOCKET_FILE}.new"):
        (directory.path / name).symlink_to(target)
    os.mkfifo(directory.path / SOCKET_FILE)
    directory.publish()

    assert [SOCKET_FILE, LOCK_FILE, PID_FILE] == names(directory)
    assert "precious" == target.read_text()
    assert connects(directory.path)


def test_publish_reports_full_disk_with_file(
    make: Callable[[], Directory], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A full disk is one line that names the file."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    directory = make()
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StartError, match=re.escape(f"{tmp_path / 'run' / PID_FILE}: No space left on device")):
        directory.publish()
    assert -1 == directory.socket.fileno()


def test_socket_works_at_long_path(tmp_path: Path) -> None:
    """A path that does not fit sockaddr_un is reached through a descriptor of its directory."""
    path = tmp_path / ("x" * 100) / ("y" * 100)
    directory = Directory(path, 0o755)
    directory.publish()

    assert connects(path)
    directory.release()


def test_release_removes_all_files(held: Directory) -> None:
    """Nothing stays, and the next daemon can have the directory."""
    held.release()
    assert [] == list(held.path.iterdir())
    held.__init__(held.path, 0o755)  # type: ignore[misc]
    held.publish()

    assert [SOCKET_FILE, LOCK_FILE, PID_FILE] == names(held)


# -- the lock ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("held")
def test_second_daemon_is_refused_with_pid(make: Callable[[], Directory]) -> None:
    """A daemon that answers is named, and nothing of it is touched."""
    with pytest.raises(StartError, match=rf"^already running \(pid {os.getpid()}\)$"):
        make()


def test_second_daemon_is_refused_before_first_listens(
    make: Callable[[], Directory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the control socket is there the lock says that a daemon is starting."""
    monkeypatch.setattr(runtime_directory, "_LOCK_TRIES", 3)
    make()

    with pytest.raises(StartError, match=r"^already running: another process holds .*/echod\.lock$"):
        make()


def test_lock_file_left_open_to_others_is_closed(tmp_path: Path, make: Callable[[], Directory]) -> None:
    """An old lock file with any mode becomes 0600."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).touch(0o644)
    directory = make()

    assert 0o600 == stat.S_IMODE((directory.path / LOCK_FILE).stat().st_mode)


def test_lock_is_taken_anew_when_file_was_replaced(
    make: Callable[[], Directory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock on a file that has just lost its name is worth nothing: the file that the path names is locked."""
    real, path = fcntl.flock, tmp_path / "run" / LOCK_FILE
    replaced: list[Path] = []

    def replace_first(fd: int, operation: int) -> None:
        if path.exists() and not replaced:
            replaced.append(path)
            path.unlink()
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", replace_first)
    directory = make()

    assert replaced
    assert os.path.samestat(os.fstat(directory.filenos()[1]), path.stat())


def test_start_waits_for_lock_that_is_being_released(make: Callable[[], Directory], tmp_path: Path) -> None:
    """A daemon that is just exiting holds its lock for an instant."""
    (tmp_path / "run").mkdir()
    fd = os.open(tmp_path / "run" / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    timer = threading.Timer(0.05, os.close, [fd])
    timer.start()
    make()
    timer.join()


def test_directory_is_locked_against_cleaners(held: Directory) -> None:
    """systemd-tmpfiles takes an exclusive flock(2) on a directory before it cleans it."""
    fd = os.open(held.path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


# -- what other programs remove ---------------------------------------------------------------------------------------


def test_restore_changes_nothing_when_all_is_in_place(held: Directory) -> None:
    """The usual case makes nothing and reports nothing."""
    before = {path.name: path.stat().st_ino for path in held.path.iterdir()}

    assert [] == held.restore()
    assert before == {path.name: path.stat().st_ino for path in held.path.iterdir()}


@pytest.mark.parametrize("removed", [[LOCK_FILE], [SOCKET_FILE], [PID_FILE], [LOCK_FILE, SOCKET_FILE, PID_FILE]])
def test_restore_makes_missing_files(held: Directory, removed: list[str]) -> None:
    """Each missing file is made again, and is one's own from then on."""
    for name in removed:
        (held.path / name).unlink()

    assert removed == held.restore()
    assert [SOCKET_FILE, LOCK_FILE, PID_FILE] == names(held)
    assert [] == held.restore()
    assert connects(held.path)


def test_restore_makes_missing_directory(held: Directory) -> None:
    """The directory comes back with its mode and all files, and is locked again."""
    for path in held.path.iterdir():
        path.unlink()
    held.path.rmdir()

    assert [str(held.path), LOCK_FILE, SOCKET_FILE, PID_FILE] == held.restore()
    assert 0o755 == stat.S_IMODE(held.path.stat().st_mode)
    test_directory_is_locked_against_cleaners(held)
    assert connects(held.path)


def test_restore_refuses_directory_of_others(held: Directory) -> None:
    """A directory that others may write to is not used in place of the lost one."""
    held.path.rename(held.path.with_name("away"))
    held.path.mkdir()
    held.path.chmod(0o775)

    with pytest.raises(StartError, match=r"others may write to it \(mode 0775\); run \"chmod 0755 "):
        held.restore()
    assert [] == list(held.path.iterdir())


@pytest.mark.parametrize("name", [LOCK_FILE, SOCKET_FILE, PID_FILE])
def test_restore_leaves_file_of_another_daemon(held: Directory, name: str) -> None:
    """A file that another program has made under one's name is neither replaced nor removed."""
    (held.path / name).unlink()
    (held.path / name).write_text("theirs")
    with pytest.raises(StartError, match=re.escape(f"{held.path / name}: another program has made it")):
        held.restore()
    held.release()

    assert "theirs" == (held.path / name).read_text()
    assert [name] == names(held)
    held.__init__(held.path, 0o755)  # type: ignore[misc]


def test_restore_goes_on_when_other_daemon_has_left(held: Directory) -> None:
    """Once the foreign file is gone its place is taken."""
    (held.path / LOCK_FILE).unlink()
    (held.path / LOCK_FILE).touch()
    with pytest.raises(StartError):
        held.restore()
    (held.path / LOCK_FILE).unlink()

    assert [LOCK_FILE] == held.restore()


# -- where it is ------------------------------------------------------------------------------------------------------


def test_configured_directory_is_made_with_parents(tmp_path: Path) -> None:
    """The directory that the configuration names is made where it is missing, and kept where it is not."""
    for _ in range(2):
        directory = runtime_directory.acquire(str(tmp_path / "a" / "b"))
        assert tmp_path / "a" / "b" == directory.path
        directory.release()


@pytest.mark.usefixtures("_places")
def test_directory_of_user_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root the default is in $XDG_RUNTIME_DIR, for the user alone."""
    monkeypatch.setattr(runtime_directory, "default_places", lambda: [tmp_path / "echod"])
    directory = runtime_directory.acquire("")
    directory.release()

    assert tmp_path / "echod" == directory.path
    assert 0o700 == stat.S_IMODE((tmp_path / "echod").stat().st_mode)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file", "not a directory"),
        ("file/below", "not a directory"),
        ("link", "a symbolic link; name the directory itself"),
        ("open", 'others may write to it (mode 0777); run "chmod 0755 '),
        ("group", 'others may write to it (mode 0775); run "chmod 0755 '),
    ],
)
def test_unsafe_directory_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    """What is no directory, leads to one, or may be written by group or others is not used."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for other, mode in (("open", 0o777), ("group", 0o775)):
        (tmp_path / other).mkdir()
        (tmp_path / other).chmod(mode)

    with pytest.raises(StartError, match=re.escape(f"runtime directory {tmp_path / name}: {reason}")):
        runtime_directory.acquire(str(tmp_path / name))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give away a directory")
def test_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In /tmp another user may have been faster: a directory of theirs is not used."""
    directory = tmp_path / "theirs"
    directory.mkdir()
    os.chown(directory, 54_321, 54_321)
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)

    with pytest.raises(StartError, match="belongs to user 54321; choose a directory of your own"):
        runtime_directory.acquire(str(directory))


def test_second_daemon_is_refused_while_the_queue_of_the_first_is_full(held: Directory) -> None:
    """Without a lock file too: the first daemon does not accept, but it runs, and keeps its socket."""
    (held.path / LOCK_FILE).unlink()
    socket_before = (held.path / SOCKET_FILE).lstat().st_ino
    waiting: list[socket.socket] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            waiting[-1].connect(str(held.path / SOCKET_FILE))
    with pytest.raises(StartError, match="already running"):
        Directory(held.path, 0o755)
    for client in waiting:
        client.close()

    assert (held.path / SOCKET_FILE).lstat().st_ino == socket_before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_restore_raises_start_error_when_files_cannot_be_looked_at(
    held: Directory, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A directory that lost its mode, or a file system with an error, is no reason to end the daemon."""

    def lstat(*_args: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "lstat", lstat)
        with pytest.raises(StartError, match=re.escape(os.strerror(number))):
            held.restore()

    assert held.restore() == []
